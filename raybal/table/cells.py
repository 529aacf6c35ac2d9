"""One cell of a table: a training run, and what its model is worth on the test items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raybal.analysis.probe import linear_probe
from raybal.balancing.base import Predictor
from raybal.data.batches import Items, in_batches
from raybal.data.pool import Pool
from raybal.predictor import load_predictor
from raybal.rounds import MODEL
from raybal.store import Store
from raybal.training.evaluate import shares_of_predictions
from raybal.training.task import TrainTask

TRAINED, MEASURED = "train.yaml", "measure.yaml"
CALIBRATION_BINS = 15
BATCH_SIZE = 256


@dataclass(frozen=True)
class Cell:
    """A row of the table with one learning rate and one seed, and its folder in the store."""

    row: str
    learning_rate: float
    seed: int

    @property
    def folder(self) -> str:
        """cells/<row>/<learning rate>/<seed>."""
        return f"cells/{self.row}/{self.learning_rate:g}/{self.seed}"

    @property
    def trained(self) -> str:
        """The marker of its finished training, with what `fit` returned."""
        return f"{self.folder}/{TRAINED}"

    @property
    def measured(self) -> str:
        """The marker of its finished measurement, with what `measure` returned."""
        return f"{self.folder}/{MEASURED}"

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.row}, learning rate {self.learning_rate:g}, seed {self.seed}"


def has_diverged(store: Store, cell: Cell) -> bool:
    """Returns whether a cell's training has ended without a model."""
    return "diverged" in store.read_yaml(cell.trained)


def validation_accuracy(store: Store, cell: Cell) -> float:
    """Returns the validation accuracy of the epoch that a finished training keeps; 0 of one that diverged."""
    if has_diverged(store, cell):
        return 0.0
    trained = store.read_yaml(cell.trained)
    return float(trained["history"][trained["epoch"] - 1]["validation"]["fused"]["accuracy"])


def measure(task: TrainTask, test: list[tuple[str, int]]) -> dict[str, Any]:
    """Measures a trained model on test items: the only place of a table that looks at them.

    Args:
        task: the finished training run.
        test: (id, class index).

    Returns:
        {"fused": {accuracy, macro_f1, ece, nll}, "heads": {m: accuracy or None}, "probes": {m: accuracy of a linear
        probe of the frozen encoder, fitted on the training items, or None}, "contribution": {m: mean share}}. `ece`
        is the expected calibration error over 15 bins of equal width.
    """
    # As long an import as all others of a training process together, and most of them measure nothing.
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

    store, device = Store(task.store), task.settings.resolve_device()
    predictor, _ = load_predictor(store, f"{task.folder}/{MODEL}", device)
    items = Pool(task.pool).items([i for i, _ in test], [k for _, k in test])
    train, validation = (None if part is None else _embed(predictor, part, device) for part in task.read_items())
    assert train is not None
    seen = _see(predictor, items, device)
    tested = seen.embedded
    probabilities = seen.logits.softmax(1)
    classes = probabilities.shape[1]
    own = {m: tested.present[:, i] for i, m in enumerate(tested.embeddings)}
    return {
        "fused": {
            "accuracy": _accuracy(seen.logits.argmax(1), tested.labels),
            "macro_f1": float(multiclass_f1_score(probabilities, tested.labels, classes, average="macro")),
            "ece": float(multiclass_calibration_error(probabilities, tested.labels, classes, CALIBRATION_BINS, "l1")),
            "nll": float(F.cross_entropy(seen.logits, tested.labels)),
        },
        "heads": {m: _accuracy(z[own[m]].argmax(1), tested.labels[own[m]]) for m, z in seen.heads.items()},
        "probes": {m: _probe(i, m, train, validation, tested, classes) for i, m in enumerate(tested.embeddings)},
        "contribution": dict(zip(tested.embeddings, seen.shares.double().mean(0).tolist(), strict=True)),
    }


def probe_on_validation(task: TrainTask) -> dict[str, float | None]:
    """Returns the accuracy of a linear probe of each frozen encoder of a trained model, fitted on its training items,
    on its validation items; None where these lack the modality."""
    device = task.settings.resolve_device()
    predictor, _ = load_predictor(Store(task.store), f"{task.folder}/{MODEL}", device)
    train, validation = (None if part is None else _embed(predictor, part, device) for part in task.read_items())
    assert train is not None
    assert validation is not None
    classes = len(task.spec.classes)
    return {m: _probe(i, m, train, None, validation, classes) for i, m in enumerate(validation.embeddings)}


def _accuracy(guess: Tensor, labels: Tensor) -> float | None:
    return float((guess == labels).double().mean()) if len(labels) else None


def _probe(
    i: int, m: str, train: _Embedded, validation: _Embedded | None, test: _Embedded, classes: int
) -> float | None:
    """Returns the accuracy of a linear probe of modality i, on the items that have it."""
    fitted, choosing, held_out = (
        None if part is None else (part.embeddings[m][part.present[:, i]], part.labels[part.present[:, i]])
        for part in (train, validation, test)
    )
    assert fitted is not None
    assert held_out is not None
    if not len(fitted[1]) or not len(held_out[1]):
        return None
    choosing = choosing if choosing is not None and len(choosing[1]) else None
    return _accuracy(linear_probe(fitted, choosing, held_out[0], classes), held_out[1])


@dataclass(frozen=True)
class _Embedded:
    """What the encoders make of n items: embeddings {m: [n, d_m]}, present bool [n, M], labels int64 [n]."""

    embeddings: dict[str, Tensor]
    present: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Seen:
    """What a predictor makes of n items.

    Attributes:
        embedded: what its encoders make of them.
        logits: of the fused prediction, [n, C].
        heads: {m: logits [n, C]} of the unimodal heads.
        shares: of each modality in the fused prediction, [n, M].
    """

    embedded: _Embedded
    logits: Tensor
    heads: dict[str, Tensor]
    shares: Tensor


@torch.no_grad()
def _embed(predictor: Predictor, items: Items, device: torch.device) -> _Embedded:
    batches = in_batches(items, BATCH_SIZE, device)
    return _joined([_Embedded(predictor.encode(b.inputs, b.present).embeddings, b.present, b.labels) for b in batches])


@torch.no_grad()
def _see(predictor: Predictor, items: Items, device: torch.device) -> _Seen:
    found = []
    for batch in in_batches(items, BATCH_SIZE, device):
        encoded = predictor.encode(batch.inputs, batch.present)
        found.append(
            _Seen(
                _Embedded(encoded.embeddings, batch.present, batch.labels),
                logits=predictor.logits(encoded.fusion_inputs, batch.present).float(),
                heads=predictor.classifier.unimodal_logits(encoded.embeddings),
                shares=shares_of_predictions(predictor, encoded, batch.present),
            )
        )
    return _Seen(
        _joined([part.embedded for part in found]),
        logits=torch.cat([part.logits for part in found]),
        heads=_by_modality([part.heads for part in found]),
        shares=torch.cat([part.shares for part in found]),
    )


def _joined(parts: list[_Embedded]) -> _Embedded:
    return _Embedded(
        _by_modality([part.embeddings for part in parts]),
        torch.cat([part.present for part in parts]),
        torch.cat([part.labels for part in parts]),
    )


def _by_modality(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {m: torch.cat([part[m] for part in parts]) for m in parts[0]}
