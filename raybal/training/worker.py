"""Running a training task: in this process, or data-parallel under Ray Train."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from raybal.errors import RaybalError
from raybal.resources import ResourceSettings, scaling
from raybal.store import Store
from raybal.training.communication import Distributed
from raybal.training.task import TrainTask

log = logging.getLogger(__name__)

# Ray Train looks after its workers every 2 s by default, which would be most of a short round.
_DEFAULTS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_METRICS_ENABLED": "0"}


def train(task: TrainTask, resources: ResourceSettings) -> dict[str, Any]:
    """Runs a training task with `task.settings.num_workers` workers, or in this process if that is 0.

    A lost worker is replaced and the run continues after its last checkpointed epoch.

    Returns:
        What `raybal.training.fit.fit` returns.

    Raises:
        RaybalError: what a worker raised on purpose.
    """
    if task.settings.num_workers == 0:
        return task.run(on_epoch=lambda record: log_epoch(record, task.settings.epochs))
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    store = Store(task.store)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": task},
        scaling_config=scaling(task.settings, resources),
        run_config=RunConfig(
            name=task.folder.replace("/", "-"),
            # Ray keeps its own small state here; checkpoints are raybal's, in the run's folder.
            storage_path=store.path("ray"),
            storage_filesystem=store.filesystem,
            failure_config=FailureConfig(max_failures=resources.max_failures, controller_failure_limit=3),
        ),
    )
    try:
        result = trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "cause", None) or failure
            if isinstance(cause, RaybalError):
                raise cause from error
        raise
    return result.return_value


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    task: TrainTask = config["task"]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("raybal").setLevel(logging.INFO)
    # Ray Train would add a line a worker for every epoch.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    workers = Distributed()

    def on_epoch(record: dict[str, Any]) -> None:
        if workers.rank == 0:
            log_epoch(record, task.settings.epochs)
        ray.train.report({"epoch": record["epoch"], "loss": record["loss"]})

    return task.run(workers, on_epoch)


def log_epoch(record: dict[str, Any], epochs: int) -> None:
    """Logs one line an epoch."""
    parts = [f"epoch {record['epoch']}/{epochs}", f"loss {record['loss']:.3f}"]
    if record["validation"]:
        accuracies = {h: v["accuracy"] for h, v in record["validation"].items() if isinstance(v, dict)}
        parts.append("validation " + " ".join(f"{head} {100 * a:.1f}%" for head, a in accuracies.items()))
    if "coefficient" in record:
        parts.append("k " + " ".join(f"{k:.2f}" for k in record["coefficient"]))
    log.info("  ".join(parts))


__all__ = ["TrainingFailedError", "train"]
