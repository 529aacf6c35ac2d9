"""Data-parallel workers, or one process, behind one interface."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Workers:
    """One process, which is all there is: every sum is its own.

    Attributes:
        rank, world: this worker's number, and how many there are.
    """

    rank = 0
    world = 1

    def all_reduce(self, value: Tensor) -> Callable[[], Tensor]:
        """Sums a tensor over all workers, in place; returns a function that waits for the result."""
        return lambda: value

    def sum(self, value: Tensor) -> Tensor:
        """Returns the sum over all workers; in place."""
        return self.all_reduce(value)()

    def gather(self, value: Tensor) -> Tensor:
        """Returns every worker's value, [world, *shape]."""
        everyone = value.new_zeros(self.world, *value.shape)
        everyone[self.rank] = value
        return self.sum(everyone)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites tensors with the first worker's."""

    def barrier(self) -> None:
        """Waits for all workers."""


class Distributed(Workers):
    """Workers of an initialised torch.distributed process group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def all_reduce(self, value: Tensor) -> Callable[[], Tensor]:
        work = dist.all_reduce(value, async_op=True)

        def wait() -> Tensor:
            assert work is not None
            work.wait()
            return value

        return wait

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        for work in [dist.broadcast(tensor, src=0, async_op=True) for tensor in tensors]:
            assert work is not None
            work.wait()

    def barrier(self) -> None:
        if dist.get_backend() == "nccl":
            dist.barrier(device_ids=[torch.cuda.current_device()])
        else:
            dist.barrier()


def free_port() -> int:
    """Returns a TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
