"""Checkpoints of a training run: one safetensors file an epoch, no pickle.

The name carries the epoch, and an epoch's content is the same whoever writes it, so a worker that outlives its
driver can only write what the next run would write too. The last checkpoint is the one with the highest epoch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raybal.errors import StoreError
from raybal.lease import is_current
from raybal.store import Store


class Checkpoints:
    """The checkpoints of one training run, in a folder of the store.

    Args:
        store: the experiment's store.
        folder: the run's folder in it.
        token: names the lease of the driver that started the run; None writes without a check.
    """

    def __init__(self, store: Store, folder: str, token: str | None = None) -> None:
        self.store = store
        self.folder = folder
        self.token = token

    def epochs(self, kind: str) -> list[int]:
        """Returns the epochs of which there is a checkpoint of a kind ("epoch" or "best"), ascending."""
        names = [n.removesuffix(".safetensors").split("-") for n in self.store.names(self.folder)]
        return sorted(int(n[1]) for n in names if len(n) == 2 and n[0] == kind and n[1].isdigit())

    def write(self, kind: str, epoch: int, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Writes one checkpoint.

        Raises:
            StoreError: the driver that started this run has been superseded.
        """
        if self.token is not None and not is_current(self.store, self.token):
            raise StoreError(f"store {self.store.root}: another driver has taken over; this training run stops")
        self.store.write_tensors(self._name(kind, epoch), tensors, metadata)

    def read(self, kind: str, epoch: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns (tensors, metadata) of one checkpoint."""
        return self.store.read_tensors(self._name(kind, epoch))

    def keep_only(self, kind: str, epoch: int | None) -> None:
        """Deletes all checkpoints of a kind but one."""
        for other in self.epochs(kind):
            if other != epoch:
                self.store.delete(self._name(kind, other))

    def _name(self, kind: str, epoch: int) -> str:
        return f"{self.folder}/{kind}-{epoch:04d}.safetensors"


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, method: dict[str, Any]) -> tuple[dict[str, Tensor], dict]:
    """Returns a run's state as flat tensors, and the numbers among it as metadata."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            elif value is not None:
                numbers[f"optimizer.{index}.{key}"] = value
    for key, value in method.items():
        if isinstance(value, Tensor):
            tensors[f"method.{key}"] = value
        else:
            numbers[f"method.{key}"] = value
    return tensors, numbers


def unpack(
    tensors: dict[str, Tensor], numbers: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restores a run's state from `pack`'s result; returns the method's part of it."""
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    method: dict[str, Any] = {}
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        kind, _, rest = name.partition(".")
        if kind == "method":
            method[rest] = value
        elif kind == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return method
