"""The check of a balancing method on several data-parallel workers."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raybal.testing.runs import Case, Weights, as_they_are, items_of, killed_and_resumed, run_of, same, trained
from raybal.training.fit import fit
from raybal.workers import Distributed, free_port

#: The check's name among a method's exceptions.
WORKERS = "workers"


def check_workers(cases: Sequence[Case], world: int) -> list[list[dict[str, Any]]]:
    """Compares data-parallel runs that are killed and resumed with one process at the same whole batch; with two
    workers, also with the same run undisturbed.

    Args:
        cases: methods; all go through one set of processes.
        world: number of workers.

    Returns:
        The history of each method's resumed run.

    Raises:
        AssertionError: replicas differ in a bit, or from one process by more than 1e-5; or with two workers a resumed
            run differs from an undisturbed one in a bit (with more, sums are added in an order that data-parallel
            training settles in its first steps, so bits may differ). Or none of it, for a method that has the
            exception "workers".
    """
    with tempfile.TemporaryDirectory() as folder:
        sent = [dataclasses.replace(case, baseline=None, permuted=as_they_are) for case in cases]
        mp.spawn(_work, (world, free_port(), folder, sent), nprocs=world)
        found = [torch.load(f"{folder}/rank-{r}.pt", weights_only=False) for r in range(world)]
    histories = []
    for i, case in enumerate(cases):
        histories.append(found[0][i][1])
        reason = case.cls.exceptions.get(WORKERS)
        try:
            _compare_workers(case, [rank[i] for rank in found])
        except AssertionError:
            if reason is None:
                raise
        else:
            assert reason is None, f"{case.cls.name} says of workers that it does not hold ({reason}), but it does"
    return histories


def _compare_workers(case: Case, found: Sequence[tuple[Weights, Any, Weights]]) -> None:
    name, world = case.cls.name, len(found)
    (resumed, _, undisturbed), *others = found
    for other in others:
        same(other[0], resumed, f"{name}: replicas of {world}", 0.0)
    alone, _ = trained(case, **_options())
    same(resumed, alone, f"{name}: {world} workers, killed and resumed, beside one process", 1e-5)
    if undisturbed:
        same(undisturbed, resumed, f"{name}: {world} workers undisturbed beside killed and resumed", 0.0)


def _options() -> dict[str, Any]:
    """Returns what runs are made with: micro-batches and missing modalities, so that workers have parts of both."""
    return {"clip_norm": 1.0, "accumulate": 2, "train": items_of(45, missing=0.2)}


def _work(rank: int, world: int, port: int, folder: str, cases: list[Case]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    results = []
    for i, case in enumerate(cases):
        resumed, history = killed_and_resumed(case, f"{folder}/{i}-resumed", workers=Distributed(), **_options())
        undisturbed: Weights = {}
        if world == 2:
            run = run_of(case, f"{folder}/{i}-whole", workers=Distributed(), **_options())
            fit(run)
            undisturbed = run.classifier.state_dict()
        results.append((resumed, history, undisturbed))
    torch.save(results, f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()
