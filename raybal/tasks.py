"""Ray tasks side by side."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import ray
import torch

from raybal import memory
from raybal.errors import RaybalError


class Titled(Protocol):
    """What has a name in messages."""

    @property
    def title(self) -> str:
        """The name."""
        ...


T = TypeVar("T", bound=Titled)


@contextlib.contextmanager
def ready_to_train(level: int = logging.WARNING) -> Iterator[None]:
    """Lets a process of Ray's use the CPUs that it has reserved, and log only what raybal has to say; gives freed
    memory back in the end, since the process may wait for other work.

    Args:
        level: of what raybal may log.
    """
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("raybal").setLevel(level)
    try:
        yield
    finally:
        memory.give_back()


def as_they_end(tasks: Mapping[Any, T]) -> Iterator[tuple[T, Any]]:
    """Yields what each task is and what it returned, as they end. Those that are left are cancelled when the caller
    stops.

    Args:
        tasks: by reference.

    Raises:
        RaybalError: a task failed, or its process was lost more often than it may be; the message names it.
    """
    waiting = dict(tasks)
    try:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(ready)
            try:
                result = ray.get(ready)
            except (RaybalError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise RaybalError(f"{task.title}: {getattr(error, 'cause', None) or error}") from error
            except ray.exceptions.RayTaskError as error:
                error.add_note(f"while it did {task.title}")
                raise
            yield task, result
    finally:
        for one in waiting:
            ray.cancel(one, force=True)
