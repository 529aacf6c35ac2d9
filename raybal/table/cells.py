"""One cell of a table: a training run, and what its model is worth on the test items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

from raybal.analysis.probe import linear_probe
from raybal.balancing.base import Predictor
from raybal.data.batches import Items, fixed_batches, gather
from raybal.data.pool import Pool
from raybal.predictor import load_predictor
from raybal.rounds import MODEL
from raybal.store import Store
from raybal.training.evaluate import evaluate, mean_contributions
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
    store, device = Store(task.store), task.settings.resolve_device()
    predictor, _ = load_predictor(store, f"{task.folder}/{MODEL}", device)
    items = Pool(task.pool).items([i for i, _ in test], [k for _, k in test])
    modalities = predictor.classifier.modalities
    found = evaluate(predictor, items, device)
    probabilities, labels = _probabilities(predictor, items, device), torch.from_numpy(items.labels).to(device)
    classes = probabilities.shape[1]
    shares = mean_contributions(predictor, items, device)
    f1 = multiclass_f1_score(probabilities, labels, classes, average="macro")
    ece = multiclass_calibration_error(probabilities, labels, classes, n_bins=CALIBRATION_BINS, norm="l1")
    return {
        "fused": {
            "accuracy": found["fused"]["accuracy"],
            "macro_f1": float(f1),
            "ece": float(ece),
            "nll": found["fused"]["nll"],
        },
        "heads": {m: found[m]["accuracy"] if found[m] else None for m in modalities},
        "probes": _probes(task, predictor, items, device),
        "contribution": dict(zip(modalities, shares, strict=True)),
    }


@torch.no_grad()
def _probabilities(predictor: Predictor, items: Items, device: torch.device) -> Tensor:
    parts = []
    for rows in fixed_batches(len(items), BATCH_SIZE):
        batch = gather(items, rows, device)
        encoded = predictor.encode(batch.inputs, batch.present)
        parts.append(predictor.logits(encoded.fusion_inputs, batch.present).float().softmax(1))
    return torch.cat(parts)


def _probes(task: TrainTask, predictor: Predictor, test: Items, device: torch.device) -> dict[str, float | None]:
    train, validation = task.read_items()
    parts = [None if items is None else _embeddings(predictor, items, device) for items in (train, validation, test)]
    assert parts[0] is not None
    assert parts[2] is not None
    found: dict[str, float | None] = {}
    for i, m in enumerate(predictor.classifier.modalities):
        rows = [None if part is None else (part[0][m][part[1][:, i]], part[2][part[1][:, i]]) for part in parts]
        fitted, choosing, seen = rows
        assert fitted is not None
        assert seen is not None
        if not len(fitted[1]) or not len(seen[1]):
            found[m] = None
            continue
        choosing = choosing if choosing is not None and len(choosing[1]) else None
        guess = linear_probe(fitted, choosing, seen[0], predictor.classifier.classes)
        found[m] = float((guess == seen[1]).double().mean())
    return found


@torch.no_grad()
def _embeddings(predictor: Predictor, items: Items, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Returns (embeddings {m: [n, d_m]}, present bool [n, M], labels [n])."""
    parts: dict[str, list[Tensor]] = {m: [] for m in predictor.classifier.modalities}
    for rows in fixed_batches(len(items), BATCH_SIZE):
        batch = gather(items, np.asarray(rows), device)
        for m, z in predictor.encode(batch.inputs, batch.present).embeddings.items():
            parts[m].append(z)
    return (
        {m: torch.cat(z) for m, z in parts.items()},
        torch.from_numpy(items.present).to(device),
        torch.from_numpy(items.labels).to(device),
    )
