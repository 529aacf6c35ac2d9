"""Checks that any balancing method must pass, raybal's own and a user's.

    from raybal.testing import Case, check

    def test_my_method():
        check(Case("my_method", {"alpha": 2.0}, baseline="joint"))

A method for which a check is mathematically untrue names it in `BalancingMethod.exceptions`; then it must indeed fail.
Nothing here needs Ray or pytest; a failed check is an AssertionError that names the check and the method.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from raybal.balancing.base import METHODS, BalancingMethod
from raybal.balancing.pace import PaceSettings
from raybal.data.batches import Items
from raybal.data.schema import Modality
from raybal.errors import ConfigError, DivergedError
from raybal.models.classifier import Classifier, ModelSettings, build_classifier
from raybal.models.encoders import EncoderSettings
from raybal.models.fusion import FUSIONS
from raybal.store import Store
from raybal.training.checkpoint import Checkpoints
from raybal.training.fit import Run, fit
from raybal.training.holdout import hold_out
from raybal.training.settings import TrainSettings
from raybal.workers import Distributed, Workers

CLASSES = 3
SEED = 7
EPOCHS = 4
#: The check that takes several processes, by its name among a method's exceptions.
WORKERS = "workers"
MODALITIES = tuple(
    Modality(name, "features", (size,), "float32", (0.0,) * size, (1.0,) * size)
    for name, size in (("audio", 5), ("video", 7))
)
THIRD = Modality("text", "features", (4,), "float32", (0.0,) * 4, (1.0,) * 4)

Weights = dict[str, Tensor]


def _as_they_are(weights: Weights) -> Weights:
    return weights


@dataclass(frozen=True)
class Case:
    """A method as it is checked.

    Attributes:
        method: its name, or its class.
        options: settings by name; choose such that all of its mechanisms act within four epochs of four steps.
        baseline: name or class of the method that it is at strength 0, with `baseline_options`; None for methods
            without a pace.
        permuted: changes the names or the order inside of the model's weights as an exchange of the two modalities
            does, for methods that own parameters in the order of the modalities.
    """

    method: str | type[BalancingMethod]
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | type[BalancingMethod] | None = None
    baseline_options: Mapping[str, Any] = field(default_factory=dict)
    permuted: Callable[[Weights], Weights] = _as_they_are

    @property
    def cls(self) -> type[BalancingMethod]:
        """The method's class."""
        return METHODS.get(self.method) if isinstance(self.method, str) else self.method

    @property
    def of_baseline(self) -> Case:
        """The baseline as a case."""
        assert self.baseline is not None
        return Case(self.baseline, self.baseline_options)


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


def items_of(count: int, modalities: Sequence[Modality] = MODALITIES, *, seed: int = 0, missing: float = 0.0) -> Items:
    """Returns random labelled items whose classes can be learnt from each modality, the first one more easily."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    present = generator.random((count, len(modalities))) >= missing
    present[~present.any(1), 0] = True
    inputs = {}
    for i, m in enumerate(modalities):
        means = np.random.default_rng(len(m.name)).normal(size=(CLASSES, *m.shape)) / (1 + i)
        values = (means[labels] + generator.normal(size=(count, *m.shape))) * present[:, i, None]
        inputs[m.name] = values.astype(np.float32)
    return Items([f"item-{i:03d}" for i in range(count)], inputs, present, labels.astype(np.int64))


def run_of(
    case: Case,
    folder: str,
    *,
    modalities: Sequence[Modality] = MODALITIES,
    fusion: str = "concat",
    workers: Workers | None = None,
    train: Items | None = None,
    validation: Items | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """Returns a small training run of a method: four epochs of four steps with SGD, without batch norm."""
    classifier, method = _built(case, modalities, fusion, options or {})
    if tuple(modalities) == MODALITIES[::-1]:
        state = _built(case, MODALITIES, fusion, options or {})[0].state_dict()
        classifier.load_state_dict(case.permuted(state))
    return Run(
        classifier=classifier,
        method=method,
        train=items_of(45, modalities) if train is None else train,
        validation=validation,
        settings=TrainSettings(
            **{
                "epochs": EPOCHS,
                "batch_size": 12,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "schedule": "constant",
                "keep": "last",
                "device": "cpu",
                "precision": "float32",
                **settings,
            }
        ),
        seed=SEED,
        checkpoints=Checkpoints(Store(folder), "train"),
        device=torch.device("cpu"),
        workers=workers or Workers(),
    )


def _built(
    case: Case, modalities: Sequence[Modality], fusion: str, options: Mapping[str, Any]
) -> tuple[Classifier, BalancingMethod]:
    model = ModelSettings(fusion=fusion, encoder=EncoderSettings(dim=6, width=2, layers=1))  # type: ignore[arg-type]
    settings = case.cls.Settings(**{"method": case.cls.name, **case.options, **options})
    method = case.cls(settings, tuple(m.name for m in modalities), CLASSES)
    classifier = build_classifier(modalities, CLASSES, model, SEED)
    torch.manual_seed(SEED)
    method.extend(classifier)
    return classifier, method


def trained(case: Case, **options: Any) -> tuple[Weights, list[dict[str, Any]]]:
    """Trains `run_of` and returns its weights and its history."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(case, folder, **options)
        history = fit(run)["history"]
        return {k: v.clone() for k, v in run.classifier.state_dict().items()}, history


class _KilledError(Exception):
    pass


def killed_and_resumed(
    case: Case, folder: str, *, after: int = EPOCHS // 2, **options: Any
) -> tuple[Weights, list[dict[str, Any]]]:
    """Returns the weights and the history of a run that ends after some epochs and is started again."""

    def kill(record: dict[str, Any]) -> None:
        if record["epoch"] == after:
            raise _KilledError

    with contextlib.suppress(_KilledError):
        fit(run_of(case, folder, **options), kill)
    run = run_of(case, folder, **options)
    history = fit(run)["history"]
    return run.classifier.state_dict(), history


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
            weights, history = trained(case, fusion=fusion, train=items, epochs=2, precision=precision)
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
                _same(resumed, whole, f"resumed after epoch {after} with {options}", 0.0)


def _accumulation(case: Case) -> None:
    # Clipped, so that what is clipped must be whole too.
    options = {"clip_norm": 0.5, "train": items_of(45, missing=0.2)}
    _same(trained(case, accumulate=3, **options)[0], trained(case, **options)[0], "three micro-batches", 1e-5)


def _permutation(case: Case) -> None:
    items = items_of(45, missing=0.2)
    turned = dataclasses.replace(items, present=items.present[:, ::-1].copy())
    for fusion in fusions_of(case):
        if FUSIONS[fusion].symmetric:
            one, _ = trained(case, fusion=fusion, train=items)
            other, _ = trained(case, fusion=fusion, train=turned, modalities=MODALITIES[::-1])
            _same(case.permuted(other), one, f"modalities exchanged with {fusion}", 1e-4)


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
    _same(shared, plain, f"strength 0 beside {case.of_baseline.cls.name}", 1e-5)


def _no_leak(case: Case) -> None:
    one, other = items_of(20, seed=5), items_of(20, seed=6)
    weights, _ = trained(case, validation=one)
    _same(trained(case, validation=other)[0], weights, "with other validation items", 0.0)
    _same(trained(case)[0], weights, "without validation items", 0.0)


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
        sent = [dataclasses.replace(case, baseline=None, permuted=_as_they_are) for case in cases]
        mp.spawn(_work, (world, _free_port(), folder, sent), nprocs=world)
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
        _same(other[0], resumed, f"{name}: replicas of {world}", 0.0)
    alone, _ = trained(case, **_PARALLEL)
    _same(resumed, alone, f"{name}: {world} workers, killed and resumed, beside one process", 1e-5)
    if undisturbed:
        _same(undisturbed, resumed, f"{name}: {world} workers undisturbed beside killed and resumed", 0.0)


_PARALLEL: dict[str, Any] = {"clip_norm": 1.0}


def _work(rank: int, world: int, port: int, folder: str, cases: list[Case]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    results = []
    for i, case in enumerate(cases):
        resumed, history = killed_and_resumed(case, f"{folder}/{i}-resumed", workers=Distributed(), **_PARALLEL)
        undisturbed: Weights = {}
        if world == 2:
            run = run_of(case, f"{folder}/{i}-whole", workers=Distributed(), **_PARALLEL)
            fit(run)
            undisturbed = run.classifier.state_dict()
        results.append((resumed, history, undisturbed))
    torch.save(results, f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _same(found: Weights, wanted: Weights, what: str, tolerance: float) -> None:
    assert found.keys() >= wanted.keys(), f"{what}: {sorted(wanted.keys() - found.keys())} missing"
    for name, value in wanted.items():
        if tolerance == 0:
            assert torch.equal(found[name], value), f"{what}: {name} differs"
        else:
            difference = float((found[name].double() - value.double()).abs().max())
            assert difference <= tolerance, f"{what}: {name} differs by {difference:.2g}"
