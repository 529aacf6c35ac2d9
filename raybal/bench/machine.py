"""The same cores for raybal and for the code beside it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import ray
import torch

from raybal.errors import ConfigError
from raybal.resources import ResourceSettings, capacity, cluster
from raybal.workers import free_port


@contextlib.contextmanager
def cores_of(count: int) -> Iterator[None]:
    """Confines this process, and the local cluster that it starts, to some of the machine's cores.

    Raises:
        ConfigError: the machine has fewer cores, or the cluster that the environment names has other CPUs.
    """
    usable, threads = _cores(), torch.get_num_threads()
    if count > len(usable):
        raise ConfigError(f"cores: {count} is not accepted; {len(usable)} can be used here")
    if not (ray.is_initialized() or os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID")):
        _confine(usable[:count], count)
        port = free_port()
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        ray.init("local", num_cpus=count, dashboard_port=port, include_dashboard=True, logging_level=logging.ERROR)
    try:
        with cluster(ResourceSettings()):
            if capacity("CPU") != count:
                raise ConfigError(f"cores: {count} is not accepted; the cluster has {capacity('CPU'):g} CPUs")
            yield
    finally:
        ray.shutdown()
        _confine(usable, threads)


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _confine(cores: list[int], threads: int) -> None:
    """Confines this process and all that it starts from here on; where the system cannot, the number alone counts."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def processes(count: int, initializer: Any, initargs: tuple[Any, ...] = ()) -> ProcessPoolExecutor:
    """Returns a pool of fresh processes: a copy of one in which Ray runs may hang."""
    return ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=initializer, initargs=initargs
    )
