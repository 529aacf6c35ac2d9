"""Accuracy of the fused prediction and of each unimodal head, every row counted once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raybal.analysis.contribution import contributions, shapley_values
from raybal.balancing.base import Predictor
from raybal.data.batches import Items, in_batches
from raybal.models.classifier import Encoded
from raybal.workers import Workers


@torch.no_grad()
def evaluate(
    predictor: Predictor, items: Items, device: torch.device, *, batch_size: int = 256, workers: Workers | None = None
) -> dict[str, Any]:
    """Evaluates a predictor on labelled items; worker r of W takes the r-th contiguous part.

    Returns:
        {"items": n, "fused": {...}, m: {...} for each modality}, each with `accuracy`, `balanced_accuracy` (mean
        recall over the classes that occur) and `nll` (mean negative log-likelihood in nats). A modality's own head
        counts the items that have it, and is None where none has.
    """
    workers = workers or Workers()
    classifier = predictor.classifier
    heads = ["fused", *classifier.modalities]
    # Per head: correct and total by class, then the sum of -log p.
    sums = torch.zeros(len(heads), 2 * classifier.classes + 1, dtype=torch.float64, device=device)
    training = classifier.training
    classifier.eval()
    mine = np.array_split(np.arange(len(items)), workers.world)[workers.rank]
    for batch in in_batches(items, batch_size, device, mine):
        encoded = predictor.encode(batch.inputs, batch.present)
        everyone = torch.ones(len(batch.labels), dtype=torch.bool, device=device)
        _add(sums[0], predictor.logits(encoded.fusion_inputs, batch.present), batch.labels, everyone)
        for i, logits in enumerate(classifier.unimodal_logits(encoded.embeddings).values()):
            _add(sums[i + 1], logits, batch.labels, batch.present[:, i])
    classifier.train(training)
    reduced = workers.sum(sums).cpu().numpy()
    return {"items": len(items)} | {head: _metrics(row) for head, row in zip(heads, reduced, strict=True)}


@torch.no_grad()
def mean_contributions(
    predictor: Predictor, items: Items, device: torch.device, *, batch_size: int = 256
) -> list[float]:
    """Returns each modality's mean share of the predictions for some items [M]; no label is looked at."""
    total = torch.zeros(len(predictor.classifier.modalities), dtype=torch.float64, device=device)
    for batch in in_batches(items, batch_size, device):
        encoded = predictor.encode(batch.inputs, batch.present)
        total += shares_of_predictions(predictor, encoded, batch.present).double().sum(0)
    return (total / len(items)).tolist()


def shares_of_predictions(predictor: Predictor, encoded: Encoded, present: Tensor) -> Tensor:
    """Returns each modality's share of the prediction for each row [B, M], by Shapley values."""
    phi, probabilities = shapley_values(lambda mask: predictor.logits(encoded.fusion_inputs, mask), present)
    return contributions(phi, probabilities.argmax(1))


def _add(sums: Tensor, logits: Tensor, labels: Tensor, rows: Tensor) -> None:
    logits, labels = logits[rows].float(), labels[rows]
    classes = (len(sums) - 1) // 2
    correct = (logits.argmax(1) == labels).double()
    sums[:classes].index_add_(0, labels, correct)
    sums[classes : 2 * classes].index_add_(0, labels, torch.ones_like(correct))
    sums[-1] += F.cross_entropy(logits, labels, reduction="sum").double()


def _metrics(sums: np.ndarray) -> dict[str, float] | None:
    classes = (len(sums) - 1) // 2
    correct, total = sums[:classes], sums[classes : 2 * classes]
    if total.sum() == 0:
        return None
    return {
        "accuracy": float(correct.sum() / total.sum()),
        "balanced_accuracy": float((correct[total > 0] / total[total > 0]).mean()),
        "nll": float(sums[-1] / total.sum()),
    }
