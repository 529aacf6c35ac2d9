"""Small training runs of a method, by which it is checked."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybal.balancing.base import METHODS, BalancingMethod
from raybal.data.batches import Items
from raybal.data.schema import Modality
from raybal.models.classifier import Classifier, ModelSettings, build_classifier
from raybal.models.encoders import EncoderSettings
from raybal.store import Store
from raybal.training.checkpoint import Checkpoints
from raybal.training.fit import Run, fit
from raybal.training.settings import TrainSettings
from raybal.workers import Workers

CLASSES = 3
SEED = 7
EPOCHS = 4


MODALITIES = tuple(
    Modality(name, "features", (size,), "float32", (0.0,) * size, (1.0,) * size)
    for name, size in (("audio", 5), ("video", 7))
)
THIRD = Modality("text", "features", (4,), "float32", (0.0,) * 4, (1.0,) * 4)

Weights = dict[str, Tensor]


def as_they_are(weights: Weights) -> Weights:
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
    permuted: Callable[[Weights], Weights] = as_they_are

    @property
    def cls(self) -> type[BalancingMethod]:
        """The method's class."""
        return METHODS.get(self.method) if isinstance(self.method, str) else self.method

    @property
    def of_baseline(self) -> Case:
        """The baseline as a case."""
        assert self.baseline is not None
        return Case(self.baseline, self.baseline_options)


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


def same(found: Weights, wanted: Weights, what: str, tolerance: float) -> None:
    assert found.keys() >= wanted.keys(), f"{what}: {sorted(wanted.keys() - found.keys())} missing"
    for name, value in wanted.items():
        if tolerance == 0:
            assert torch.equal(found[name], value), f"{what}: {name} differs"
        else:
            difference = float((found[name].double() - value.double()).abs().max())
            assert difference <= tolerance, f"{what}: {name} differs by {difference:.2g}"
