"""Running a training task: in this process, or data-parallel under Ray Train."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import ray.train
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from raybal import memory
from raybal.errors import RaybalError
from raybal.resources import ResourceSettings, scaling
from raybal.store import Store
from raybal.training.task import TrainTask
from raybal.workers import Distributed

log = logging.getLogger(__name__)

_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# Ray Train looks after its workers every 2 s by default, which would be most of a short round, and gives a cluster 60 s
# to grow, in which no machine starts.
_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    _START_TIMEOUT: "1200",
}
# It also watches for machines that are about to be taken away, in a process of its own. A cluster that raybal has
# started is this machine, and goes with the driver.
_DEFAULTS_OF_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def train(
    task: TrainTask,
    resources: ResourceSettings,
    callbacks: Sequence[UserCallback] = (),
    report: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Runs a training task with `task.settings.num_workers` workers, or in this process if that is 0.

    A lost worker is replaced and the run continues after its last checkpointed epoch.

    Args:
        task: the run.
        resources: what it may use.
        callbacks: of Ray Train's run, such as one that tells Ray Tune what was reported.
        report: what is reported to Ray Train of each epoch's record; None reports nothing.

    Returns:
        What `raybal.training.fit.fit` returns.

    Raises:
        RaybalError: what a worker raised on purpose, which is not tried again; or the workers did not start.
    """
    if task.settings.num_workers == 0:
        return task.run(on_epoch=lambda record: log_epoch(record, task.settings.epochs))
    _set_defaults()
    store = Store(task.store)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": task, "report": report},
        scaling_config=scaling(task.settings, resources),
        run_config=RunConfig(
            name=task.folder.replace("/", "-"),
            # Ray keeps its own small state here; checkpoints are raybal's, in the run's folder.
            storage_path=store.path("ray"),
            storage_filesystem=store.filesystem,
            failure_config=FailureConfig(max_failures=resources.max_failures, controller_failure_limit=3),
            callbacks=[_Failures(), *callbacks],
            # Ray Train's loop runs in a thread, whose own heap could not keep large blocks.
            worker_runtime_env={"env_vars": memory.environment()},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        return trainer.fit().return_value
    except ControllerError as error:
        if isinstance(error.controller_failure, RaybalError):
            raise error.controller_failure from error
        if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise RaybalError(
                f"the {task.settings.num_workers} workers did not start in {os.environ[_START_TIMEOUT]} s: the "
                "cluster has no room for them and has not grown. Ask for fewer (train.num_workers) or less each "
                f"(resources.*), see `ray status`, or wait longer ({_START_TIMEOUT}); the same command continues"
            ) from error
        raise


def _set_defaults() -> None:
    """Sets what the user has not set in the environment; Ray Train passes it on to its processes."""
    connected = os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID")
    for name, value in (_DEFAULTS if connected else _DEFAULTS | _DEFAULTS_OF_ONE_MACHINE).items():
        os.environ.setdefault(name, value)


class _Failures(UserCallback):
    """Looks at workers that ended with an error, in Ray Train's controller, before it decides to start them again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, RaybalError):
                # Whoever tries again would find the same file missing or the same disk full.
                raise ControllerError(error)
        for rank, error in worker_exceptions.items():
            log.warning("training worker %d failed: %s", rank, str(error).strip().rpartition("\n")[2])


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    task: TrainTask = config["task"]
    report = config["report"]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("raybal").setLevel(logging.INFO)
    workers = Distributed()

    # Without need nothing is reported to Ray Train: a report waits for all workers and for the controller's next look
    # at them, longer than a short epoch takes.
    def on_epoch(record: dict[str, Any]) -> None:
        if workers.rank == 0:
            log_epoch(record, task.settings.epochs)
        if report is not None:
            ray.train.report(report(record))

    try:
        return task.run(workers, on_epoch)
    except RaybalError:
        # The driver says it in one line; Ray Train would put a traceback a worker before it.
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        raise


def log_epoch(record: dict[str, Any], epochs: int) -> None:
    """Logs one line an epoch."""
    parts = [f"epoch {record['epoch']}/{epochs}", f"loss {record['loss']:.3f}"]
    if record["validation"]:
        accuracies = {h: v["accuracy"] for h, v in record["validation"].items() if isinstance(v, dict)}
        parts.append("validation " + " ".join(f"{head} {100 * a:.1f}%" for head, a in accuracies.items()))
    if "coefficient" in record:
        parts.append("k " + " ".join(f"{k:.2f}" for k in record["coefficient"]))
    log.info("  ".join(parts))
