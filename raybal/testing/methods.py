"""The checks of a balancing method."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybal.balancing.pace import PaceSettings
from raybal.data.schema import Modality
from raybal.errors import ConfigError, DivergedError
from raybal.models.fusion import FUSIONS
from raybal.testing.runs import (
    EPOCHS,
    MODALITIES,
    SEED,
    THIRD,
    Case,
    items_of,
    killed_and_resumed,
    run_of,
    same,
    trained,
)
from raybal.testing.workers import WORKERS, check_workers
from raybal.training.fit import fit
from raybal.training.holdout import hold_out


def check(case: Case, workers: Sequence[int] = (2,)) -> None:
    """Puts a method through all checks.

    Args:
        case: the method.
        workers: numbers of data-parallel workers (gloo processes on this machine) to compare with one.

    Raises:
        AssertionError: a check failed, or one that the method calls untrue of itself holds.
    """
    for name in CHECKS:
        check_one(case, name)
    for world in workers:
        check_workers([case], world)


def check_one(case: Case, name: str) -> None:
    """Puts a method through one of `CHECKS`.

    Raises:
        AssertionError: as in `check`.
    """
    unknown = set(case.cls.exceptions) - {*CHECKS, WORKERS}
    assert not unknown, f"{case.cls.name} has exceptions from checks that there are not: {sorted(unknown)}"
    reason = case.cls.exceptions.get(name)
    try:
        CHECKS[name](case)
    except (AssertionError, DivergedError) as error:
        if reason is None:
            raise AssertionError(f"{case.cls.name}: {name}: {error}") from error
    else:
        assert reason is None, f"{case.cls.name} says of {name} that it does not hold ({reason}), but it does"


def fusions_of(case: Case, modalities: Sequence[Modality] = MODALITIES) -> list[str]:
    """Returns the fusions that a method takes; it must refuse the others with a ConfigError that names it.

    Raises:
        AssertionError: a refusal does not name the method, or every fusion is refused.
    """
    taken = []
    for fusion in FUSIONS:
        try:
            with tempfile.TemporaryDirectory() as folder:
                run_of(case, folder, fusion=fusion, modalities=modalities)
            taken.append(fusion)
        except ConfigError as error:
            _names(error, case)
    assert taken, "no fusion is taken"
    return taken


def _names(error: ConfigError, case: Case) -> None:
    assert case.cls.name in str(error), f"a refusal does not name the method: {error}"


def _finite(case: Case) -> None:
    items = items_of(24, missing=0.4)
    for fusion in fusions_of(case):
        for precision in ("float32", "bfloat16"):
            # Long enough for every mechanism to act, in one fusion.
            epochs = EPOCHS if fusion == "concat" else 2
            weights, history = trained(case, fusion=fusion, train=items, epochs=epochs, precision=precision)
            for name, value in weights.items():
                assert torch.isfinite(value).all(), f"{name} with {fusion} in {precision}"
            assert all(np.isfinite(record["loss"]) for record in history), f"the loss with {fusion} in {precision}"


def _three_modalities(case: Case) -> None:
    modalities = (*MODALITIES, THIRD)
    try:
        weights, _ = trained(case, modalities=modalities, train=items_of(24, modalities, missing=0.3), epochs=3)
    except ConfigError as error:
        _names(error, case)
    else:
        assert all(torch.isfinite(v).all() for v in weights.values())


def _state_round_trip(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(case, folder)
        fit(run)
        state = run.method.state_dict()
        other = run_of(case, folder).method
        other.load_state_dict({k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()})
        again = other.state_dict()
    assert state.keys() == again.keys(), f"{sorted(state)} became {sorted(again)}"
    for key, value in state.items():
        same = torch.equal(value, again[key]) if isinstance(value, Tensor) else value == again[key]
        assert same, f"{key} changed"


def _resume(case: Case) -> None:
    runs: list[tuple[Sequence[int], dict[str, Any]]] = [
        ((2,), {"optimizer": "sgd"}),
        (range(1, EPOCHS), {"optimizer": "adam"}),
    ]
    if "pace" in case.cls.Settings.__dataclass_fields__:
        # In the second step of its fall when it is killed.
        runs.append(((1,), {"options": {"pace": PaceSettings(phase_out=1e9, phase_out_steps=3)}}))
    for epochs, options in runs:
        whole, _ = trained(case, **options)
        for after in epochs:
            with tempfile.TemporaryDirectory() as folder:
                resumed, _ = killed_and_resumed(case, folder, after=after, **options)
                same(resumed, whole, f"resumed after epoch {after} with {options}", 0.0)


def _accumulation(case: Case) -> None:
    # Clipped, so that what is clipped must be whole too.
    options = {"clip_norm": 0.5, "train": items_of(45, missing=0.2)}
    same(trained(case, accumulate=3, **options)[0], trained(case, **options)[0], "three micro-batches", 1e-5)


def _permutation(case: Case) -> None:
    items = items_of(45, missing=0.2)
    turned = dataclasses.replace(items, present=items.present[:, ::-1].copy())
    for fusion in fusions_of(case):
        if FUSIONS[fusion].symmetric:
            one, _ = trained(case, fusion=fusion, train=items)
            other, _ = trained(case, fusion=fusion, train=turned, modalities=MODALITIES[::-1])
            same(case.permuted(other), one, f"modalities exchanged with {fusion}", 1e-4)


def _strength_zero(case: Case) -> None:
    if case.baseline is None:
        assert "pace" not in case.cls.Settings.__dataclass_fields__, "a method with a pace needs a baseline to check"
        return
    items = items_of(45)
    with tempfile.TemporaryDirectory() as folder:
        share = run_of(case, folder).method.holdout_share
    left, _ = hold_out(items, share, SEED)
    off, _ = trained(case, train=items, options={"pace": PaceSettings(final=0.0)})
    plain, _ = trained(case.of_baseline, train=left)
    shared = {k: v for k, v in off.items() if k in plain}
    same(shared, plain, f"strength 0 beside {case.of_baseline.cls.name}", 1e-5)


def _no_leak(case: Case) -> None:
    one, other = items_of(20, seed=5), items_of(20, seed=6)
    weights, _ = trained(case, validation=one)
    same(trained(case, validation=other)[0], weights, "with other validation items", 0.0)
    same(trained(case)[0], weights, "without validation items", 0.0)


#: All checks that one process can make, by name.
CHECKS: dict[str, Callable[[Case], None]] = {
    "finite": _finite,
    "three modalities": _three_modalities,
    "state round trip": _state_round_trip,
    "resume": _resume,
    "accumulation": _accumulation,
    "permutation": _permutation,
    "strength zero": _strength_zero,
    "no leak": _no_leak,
}
