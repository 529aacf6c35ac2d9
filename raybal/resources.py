"""The only place that turns the size of a machine or cluster into workers, actors and threads."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from raybal import autoscaling
from raybal.errors import ConfigError, RaybalError
from raybal.settings import Settings, setting
from raybal.training.settings import TrainSettings
from raybal.workers import free_port

if TYPE_CHECKING:
    from ray.train import ScalingConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResourceSettings(Settings):
    """What raybal may use of the machine or cluster. None of it changes results."""

    cpus_per_worker: float = setting(1.0, gt=0, defines=False, help="CPUs a data-parallel training worker reserves")
    gpus_per_worker: float | None = setting(
        None, ge=0, defines=False, help="GPUs a training worker reserves; none: 1 where the cluster has GPUs"
    )
    scoring_actors: int | None = setting(
        None, ge=1, defines=False, help="actors that score and select; none: one a CPU, at most one a shard"
    )
    trials: int | None = setting(
        None,
        ge=1,
        defines=False,
        help="trials of a sweep that run at a time; none: as many as the cluster has room for at the start (an "
        "autoscaler does not tell what it could add)",
    )
    max_failures: int = setting(3, ge=0, defines=False, help="how often a training run may lose a worker")
    object_store_gb: float | None = setting(
        None, gt=0, defines=False, help="memory of a local cluster's object store; none: as Ray chooses"
    )


def check_place(key: str, place: str) -> None:
    """Raises a ConfigError if a place that must last is a relative path in a submitted job, whose current folder is
    an uploaded copy of the working directory."""
    uploaded = "/runtime_resources/working_dir_files/" in os.getcwd() + "/"
    if uploaded and "://" not in place and not os.path.isabs(place):
        raise ConfigError(
            f"{key}: {place!r} is not accepted in a submitted job: it would lie in the uploaded copy of the working "
            "directory, which is thrown away; give an absolute path or a URI"
        )


@contextlib.contextmanager
def cluster(settings: ResourceSettings) -> Iterator[None]:
    """Connects to the cluster that the environment names, or starts a local one and ends it again.

    Ray Train's helpers find a local cluster by RAY_API_SERVER_ADDRESS; without it they may find the address file
    of a cluster that is gone, and every training run waits for it.
    """
    if ray.is_initialized():
        yield
        return
    if _is_connected():
        _connect()
    else:
        port = free_port()
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        memory = settings.object_store_gb
        ray.init(
            "local",
            dashboard_port=port,
            include_dashboard=True,
            log_to_driver=True,
            logging_level=logging.ERROR,
            object_store_memory=None if memory is None else int(memory * 2**30),
        )
    try:
        yield
    finally:
        ray.shutdown()


def _is_connected() -> bool:
    """Whether raybal runs on a cluster that was there before it, rather than on this machine alone."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


def _connect() -> None:
    """Connects to the cluster that RAY_ADDRESS names, or that the job runs in.

    Raises:
        RaybalError: none answers there. Ray itself would try for minutes.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(log_to_driver=True)
    except (OSError, ValueError) as error:
        raise RaybalError(
            f"RAY_ADDRESS: no Ray cluster answers at {address!r} ({error}); start it, correct the address, or unset "
            "it to use this machine alone"
        ) from error


def capacity(resource: str) -> float:
    """Returns how much of a resource the cluster has now; an autoscaler does not tell what it could add."""
    return float(ray.cluster_resources().get(resource, 0.0))


def scaling(train: TrainSettings, settings: ResourceSettings) -> ScalingConfig:
    """Returns Ray Train's scaling for a training run.

    Raises:
        ConfigError: the workers ask for more than this machine has, or the cluster at its largest: its autoscaler has
            half a minute to say so.
    """
    # Takes a second to import, which most processes can do without.
    from ray.train import ScalingConfig

    bundle = _bundle(train, settings)
    _check_room(bundle, train.num_workers, "train.num_workers")
    return ScalingConfig(num_workers=train.num_workers, use_gpu="GPU" in bundle, resources_per_worker=bundle)


def trial_options(train: TrainSettings, settings: ResourceSettings) -> tuple[dict[str, float], int]:
    """Returns (what Ray Tune reserves for a trial, how many trials run at a time at most).

    A trial that trains by itself has its CPUs or its GPU from Ray Tune. One with data-parallel workers reserves no more
    than a byte of memory, because it has to reserve something and the workers may need all CPUs: they have a
    reservation of their own, which Ray Tune does not know of, so that only the number of trials keeps them from waiting
    for one another.

    Raises:
        ConfigError: not even one trial fits this machine, or the cluster at its largest.
    """
    bundle, workers = _bundle(train, settings), max(1, train.num_workers)
    _check_room(bundle, workers, "train.num_workers" if train.num_workers else "resources")
    at_once = settings.trials or max(1, int(_room(bundle, _present()) // workers))
    return (bundle if not train.num_workers else {"memory": 1.0}), at_once


def _bundle(train: TrainSettings, settings: ResourceSettings) -> dict[str, float]:
    """Returns what one training process reserves."""
    gpus = _gpus(settings, train.device)
    if train.device == "cuda" and gpus == 0:
        raise ConfigError("train.device: 'cuda' needs resources.gpus_per_worker above 0, and the cluster has no GPU")
    return {"CPU": settings.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


#: Nodes: what one has, and how many of its kind there are or may be.
Nodes = list[tuple[dict[str, float], float]]


def _present() -> Nodes:
    """Returns the nodes that the cluster has now."""
    return [(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]


def _room(bundle: dict[str, float], nodes: Nodes) -> float:
    """Returns how many reservations of one kind fit some nodes."""
    needs = {name: wanted for name, wanted in bundle.items() if wanted > 0}
    if not needs:
        return math.inf
    # Sums of tenths of a CPU or GPU end a hair off.
    return sum(count * min(int(has.get(n, 0.0) / w + 1e-6) for n, w in needs.items()) for has, count in nodes if count)


def _check_room(bundle: dict[str, float], count: int, key: str) -> None:
    if _room(bundle, _present()) >= count:
        return
    each = " and ".join(f"{wanted:g} {name}" for name, wanted in bundle.items())
    keys = "resources.cpus_per_worker" + (", resources.gpus_per_worker" if "GPU" in bundle else "")
    asked = f"{count} workers of {each} each ({keys})"
    have = " and ".join(f"{capacity(name):g} {name}" for name in bundle)
    if not _is_connected():
        raise ConfigError(f"{key}: {asked} do not fit; this machine has {have}")
    if not autoscaling.grows():
        raise ConfigError(f"{key}: {asked} do not fit; the cluster has {have}, and no autoscaler that would add any")
    log.info("%s do not fit the %s that the cluster has now; asking its autoscaler for more", asked, have)
    if not autoscaling.can_place([bundle] * count):
        raise ConfigError(
            f"{key}: {asked} do not fit the cluster, even with all the machines that its autoscaler may start beside "
            f"what runs now; it has {have}"
        )


def task_options(train: TrainSettings, settings: ResourceSettings) -> dict[str, Any]:
    """Returns Ray's options of a task that trains by itself, as many at a time as the cluster has room for.

    Raises:
        ConfigError: not even one fits this machine, or the cluster at its largest; Ray would wait for ever.
    """
    bundle = _bundle(train, settings)
    _check_room(bundle, 1, "resources")
    return {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0.0), "max_retries": settings.max_failures}


def _gpus(settings: ResourceSettings, device: str) -> float:
    if settings.gpus_per_worker is not None:
        return settings.gpus_per_worker
    return 1.0 if capacity("GPU") and device != "cpu" else 0.0


def scoring_options(shards: int, settings: ResourceSettings) -> tuple[int, dict[str, Any]]:
    """Returns (number of scoring actors, options of each): one a GPU where the cluster has GPUs, else one a CPU, and
    never more than shards.

    With no resource named, Ray places an actor where a CPU is free and reserves none for it afterwards: scoring and
    training take turns, so actors can stay while workers train. A GPU is reserved as long as its actor lives.
    """
    gpus = int(capacity("GPU"))
    most = gpus or max(1, int(capacity("CPU")))
    count = max(1, min(settings.scoring_actors or most, shards))
    options: dict[str, Any] = {"scheduling_strategy": "SPREAD", "max_restarts": 3, "max_task_retries": 3}
    return count, options | ({"num_gpus": 1} if gpus else {})
