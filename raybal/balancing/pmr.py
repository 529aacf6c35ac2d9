"""PMR: prototypical modal rebalance.

Fan, Xu, Wang, Wang and Guo, "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.balancing.base import Context, in_full_precision, row_losses, unimodal_loss
from raybal.balancing.lookahead import LookaheadMethod
from raybal.balancing.looking import look, part_of
from raybal.balancing.paced import PacedSettings, true_class_probability
from raybal.data.batches import Batch, Items
from raybal.models.classifier import Output
from raybal.settings import setting


@dataclass(frozen=True)
class PMRSettings(PacedSettings):
    """Settings of PMR. Published alpha 1; in Kontras et al.'s runs CREMA-D 1.75 (until epoch 70), AVE 1.5, UCF101 3."""

    method: str = setting("pmr", help="balancing method")
    alpha: float = setting(
        1.0,
        gt=0,
        help="weight of the weaker modality's prototype loss",
        search={"kind": "uniform", "low": 0.5, "high": 4.0},
    )
    momentum: float = setting(
        0.2,
        ge=0,
        lt=1,
        help="share of the old prototypes that is kept at each epoch",
        search={"kind": "choice", "values": [0.0, 0.2, 0.5]},
    )
    share: float = setting(
        0.1, gt=0, le=1, help="share of each class's training items that prototypes are made of, at least one item"
    )

    published = (
        {"alpha": 1.75, "pace": {"kind": "window", "end": 0.7}},
        {"alpha": 1.5},
        {"alpha": 3.0},
    )


class PMR(LookaheadMethod):
    """Adds, to the fused loss, a prototype loss of the modality that is behind.

    A prototype is the mean embedding of a class in one modality, renewed before every epoch. How far a modality is
    follows from the probability that a softmax over the negative distances gives the true class; only the weakest
    modality of the batch gets the loss.

    Departures from the released code: the items of a prototype are drawn class by class, so that none is empty; a
    class without items keeps its old prototype; the comparison is of the whole batch over all workers; of more than
    two modalities the weakest gets the loss. The paper's entropy regulariser is in none of the released versions,
    and not here.
    """

    name = "pmr"
    Settings = PMRSettings
    settings: PMRSettings
    scores_modalities = True

    def __init__(self, settings: PMRSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self._prototypes: dict[str, Tensor] = {}
        self._weights = torch.zeros(len(modalities))

    def before_epoch(self, ctx: Context) -> None:
        seed = hashing.digest("prototypes", ctx.seed, ctx.epoch)
        chosen = some_of_each_class(ctx.train, self.settings.share, seed)
        for m, (sums, counts) in _class_sums(ctx, chosen, self.classes).items():
            self._prototypes[m] = update_prototypes(self._prototypes.get(m), sums, counts, self.settings.momentum)

    def terms(self, ctx: Context, output: Output) -> dict[str, Tensor]:
        return {m: similarities(z, self._prototypes[m]) for m, z in output.embeddings.items()}

    def statistic(self, output: Output, terms: Mapping[str, Tensor], batch: Batch) -> Tensor:
        known = self._known(output, batch)
        rows = batch.weights[:, None] * known
        similar = [torch.where(known[:, i, None], s, 0.0) for i, s in enumerate(terms.values())]
        scores = torch.stack([true_class_probability(s, batch.labels) for s in similar], 1)
        return torch.stack([(scores * rows).sum(0), rows.sum(0).to(scores.dtype)])

    def _known(self, output: Output, batch: Batch) -> Tensor:
        """Returns whether a row has a modality, and its class a prototype there, bool [B, M]."""
        there = [~self._prototypes[m].isnan().any(1)[batch.labels] for m in self.modalities]
        return torch.stack(there, 1) & output.present

    def prepare(self, ctx: Context, sums: Tensor) -> None:
        scores, counts = sums
        scores = scores / counts.clamp(min=1)
        self.observe(ctx, scores, counts > 0)
        strengths = self.strengths(ctx).to(scores.dtype)
        self._weights = strengths * self.settings.alpha * prototypical_weights(scores, counts > 0)
        ctx.record("prototype_weight", self._weights)
        ctx.record("score", scores)

    def loss_of(self, output: Output, terms: Mapping[str, Tensor], batch: Batch) -> Tensor:
        loss = row_losses(output.logits, batch).sum() / batch.total + unimodal_loss(output, batch)
        known = self._known(output, batch)
        for i, similarity in enumerate(terms.values()):
            own = row_losses(torch.where(known[:, i, None], similarity, 0.0), batch) * known[:, i]
            loss = loss + self._weights[i] * own.sum() / batch.total
        return loss

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {f"prototypes.{m}": value for m, value in self._prototypes.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._prototypes = {m: state[f"prototypes.{m}"] for m in self.modalities if f"prototypes.{m}" in state}


def similarities(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Returns the negative Euclidean distances [B, C] of embeddings [B, d] to prototypes [C, d]; minus infinity for a
    class without a prototype (NaN)."""
    there = ~prototypes.isnan().any(1)
    z = in_full_precision(embeddings)
    known = torch.where(there[:, None], prototypes, 0.0).to(z)
    distances = torch.cdist(z, known, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.where(there, -distances, -torch.inf)


def prototypical_weights(scores: Tensor, seen: Tensor | None = None) -> Tensor:
    """Returns which modality gets its prototype loss: [M], 1 for the weakest, 0 for the others; all 0 where there is
    no weaker one.

    Args:
        scores: [M], sums or means over the batch of the true class's probability by prototypes.
        seen: bool [M], modalities that the batch has; the others are not compared.
    """
    seen = torch.ones_like(scores, dtype=torch.bool) if seen is None else seen
    weakest = torch.where(seen, scores, torch.inf).amin()
    ahead = (seen & (scores > weakest)).any()
    first = torch.arange(len(scores), device=scores.device) == torch.where(seen, scores, torch.inf).argmin()
    return (first & ahead).to(scores.dtype)


def update_prototypes(old: Tensor | None, sums: Tensor, counts: Tensor, momentum: float) -> Tensor:
    """Returns new prototypes [C, d]: (1 - momentum) * class means + momentum * old.

    Args:
        old: [C, d], NaN rows for classes without one; None before the first epoch.
        sums: [C, d], sums of embeddings.
        counts: [C], numbers of embeddings; a class with none keeps its old prototype.
    """
    means = sums / counts[:, None]
    if old is None:
        return means
    old = old.to(sums)
    mixed = torch.where(old.isnan(), means, (1 - momentum) * means + momentum * old)
    return torch.where(counts[:, None] > 0, mixed, old)


def some_of_each_class(items: Items, share: float, seed: int) -> NDArray[np.bool_]:
    """Returns which items make the prototypes of which modality, bool [n, M]: a share, rounded up, of each class's
    items that have the modality, by a hash of the seed and the ids."""
    order = hashing.order(items.ids, seed)
    chosen = np.zeros_like(items.present)
    for i in range(items.present.shape[1]):
        for label in np.unique(items.labels):
            own = order[(items.labels[order] == label) & items.present[order, i]]
            chosen[own[: int(np.ceil(share * len(own)))], i] = True
    return chosen


def _class_sums(ctx: Context, chosen: NDArray[np.bool_], classes: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns (sums [C, d_m], counts [C]) of each modality's embeddings in eval mode, over all workers, in float64."""
    positions = np.flatnonzero(chosen.any(1))
    seen = look(ctx, ctx.train, positions)
    counts = torch.from_numpy(chosen[positions][part_of(ctx, len(positions))]).to(ctx.device)
    sums = {}
    for i, (m, z) in enumerate(seen.embeddings.items()):
        counted = torch.cat([z.double(), torch.ones(len(z), 1, dtype=torch.float64, device=ctx.device)], 1)
        sums[m] = torch.zeros(classes, counted.shape[1], dtype=torch.float64, device=ctx.device)
        sums[m].index_add_(0, seen.labels, counted * counts[:, i, None])
    waits = {m: ctx.workers.all_reduce(value) for m, value in sums.items()}
    reduced = {m: wait() for m, wait in waits.items()}
    return {m: (value[:, :-1], value[:, -1]) for m, value in reduced.items()}
