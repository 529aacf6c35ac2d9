"""What a sweep costs beside the same trainings without Ray Tune."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from raybal.bench.machine import processes
from raybal.bench.toy import make_pool
from raybal.lease import Lease
from raybal.settings import from_plain
from raybal.store import Store
from raybal.training.task import TrainTask
from raybal.tuning.config import TuneConfig
from raybal.tuning.sweep import Sweep
from raybal.tuning.trials import search

METHOD = "multi_loss"


def bench_tune(items: int, seconds: float, cores: int) -> Iterator[tuple[str, float]]:
    """Runs two trials a core, one a core at a time, and then the same trainings in bare processes.

    Yields:
        (what, value): seconds that a trial trains, about `seconds`; the sweep and the bare trainings, in seconds of
        wall time, with the share of training in that of the sweep; and what each trial costs beside its training, its
        probes and its share of the sweep's start and end among it, in seconds of a core, by trials of two epochs.
    """
    trials = 2 * cores
    with tempfile.TemporaryDirectory() as folder:
        make_pool(f"{folder}/pool", items)
        # The first processes also find what is compiled already.
        _swept(folder, "warm", 1, trials)
        short, tasks = _swept(folder, "short", 2, trials)
        bare, epoch = _bare(tasks, cores)
        yield "fixed cost of a trial, s", (short - bare) * cores / trials
        sweep, tasks = _swept(folder, "long", math.ceil(seconds / epoch), trials)
        bare, _ = _bare(tasks, cores)
        yield "a trial trains, s", bare * cores / trials
        yield "sweep, s", sweep
        yield "bare trainings, s", bare
        yield "share of training", bare / sweep


def _swept(folder: str, name: str, epochs: int, trials: int) -> tuple[float, list[TrainTask]]:
    """Returns (seconds that the trials of a sweep take, the trainings that they are)."""
    content: dict[str, Any] = {
        "pool": f"{folder}/pool",
        "store": f"{folder}/{name}",
        "methods": [METHOD],
        "search": ["learning_rate", "weight_decay"],
        "seeds": 0,
        "train": {"epochs": epochs, "device": "cpu"},
    }
    store = Store(content["store"])
    lease = Lease(store)
    sweep = Sweep(from_plain(TuneConfig, content), store, lease)
    with lease:
        sweep.begin()
        # Trials measure how evenly their modalities have learnt, as those of a real sweep do.
        plan = dataclasses.replace(sweep.plans[METHOD], alone=dict.fromkeys(sweep.material.pool.info.names, 1.0))
        started = time.perf_counter()
        row = search(plan, sweep.parts, store, sweep.journal(), trials, stopping=False)
        seconds = time.perf_counter() - started
    tasks = [plan.task(plan.run_of(f"bare-{t.number}", t.values), t.values) for t in row.trials]
    for task in tasks:
        task.write_items(*sweep.parts)
    return seconds, [dataclasses.replace(task, token=None) for task in tasks]


def _bare(tasks: Sequence[TrainTask], cores: int) -> tuple[float, float]:
    """Returns the seconds that trainings take, one a core at a time, in processes that have started, and those of the
    shortest last epoch."""
    with contextlib.ExitStack() as stack:
        each = [stack.enter_context(processes(1, torch.set_num_threads, (1,))) for _ in range(cores)]
        for future in [process.submit(_ready, tasks[0]) for process in each]:
            future.result()
        started = time.perf_counter()
        futures = [each[i % cores].submit(_train, task) for i, task in enumerate(tasks)]
        epochs = [future.result() for future in futures]
        return time.perf_counter() - started, min(epochs)


def _ready(task: TrainTask) -> None:
    task.spec.build()


def _train(task: TrainTask) -> float:
    return float(task.run()["history"][-1]["seconds"])
