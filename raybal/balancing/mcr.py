"""MCR: multimodal competition regulariser.

Kontras, Strypsteen, Chatzichristos, Liang, Blaschko and De Vos, "Balancing Multimodal Training Through Game-Theoretic
Regularization", NeurIPS 2025 (arXiv 2411.07335).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybal import hashing
from raybal.balancing.base import Context, in_full_precision, multi_loss, no_sync, with_gradient
from raybal.balancing.paced import PacedMethod, PacedSettings
from raybal.data.batches import Batch
from raybal.errors import ConfigError
from raybal.models.classifier import Classifier, Output
from raybal.settings import setting

GAMES = {"greedy": -1.0, "independent": 0.0, "collaborative": 1.0}


@dataclass(frozen=True)
class MCRSettings(PacedSettings):
    """Settings of MCR. Published mipd / unimodal / contrastive / bottleneck weights: CREMA-D ResNet 0.1 / 0.01 / 1 / 0,
    Conformer 0.1 / 1 / 1 / 1; AVE ResNet 0.01 / 0.01 / 1 / 0; UCF101 0.001 / 0.1 / 1 / 0, all from unimodally
    pretrained encoders but the first Conformer."""

    method: str = setting("mcr", help="balancing method")
    mipd_weight: float = setting(
        0.1,
        ge=0,
        help="weight of the modalities' influence on the fused prediction",
        search={"kind": "loguniform", "low": 0.001, "high": 0.1},
    )
    unimodal_weight: float = setting(
        0.01,
        ge=0,
        help="weight of each head's own cross-entropy",
        search={"kind": "loguniform", "low": 0.001, "high": 1.0},
    )
    contrastive_weight: float = setting(
        1.0, ge=0, help="weight of the contrastive term, which needs embeddings of one size"
    )
    bottleneck_weight: float = setting(
        0.0,
        ge=0,
        help="weight of predicting the embeddings from the fused logits",
        search={"kind": "choice", "values": [0.0, 1.0]},
    )
    game: Literal["greedy", "independent", "collaborative"] = setting(
        "greedy",
        help="whether an encoder lessens the other modalities' influence, leaves it alone or strengthens it, beside "
        "strengthening its own",
    )
    permutations: int = setting(32, ge=1, help="permutations of the batch that influence is averaged over")
    temperature: float = setting(0.5, gt=0, help="temperature of the contrastive term")

    published = (
        {"mipd_weight": 0.1, "unimodal_weight": 1.0, "bottleneck_weight": 1.0},
        {"mipd_weight": 0.01, "unimodal_weight": 0.01},
        {"mipd_weight": 0.001, "unimodal_weight": 0.1},
    )


class MCR(PacedMethod):
    """Adds to the fused loss a game between the encoders for influence on the fused prediction.

    A modality's influence is how far the fused prediction moves, in Jensen-Shannon divergence, when that modality's
    embeddings are exchanged between the items of the batch. Every encoder strengthens its own influence and, in the
    greedy game, lessens the others'. A contrastive term draws the embeddings of one class together over modalities,
    and a bottleneck term keeps in them what the prediction tells.

    Items are exchanged over all workers' rows, so that any number of workers gives the same step; with several
    micro-batches, within each. Departures from the released code: the influence and contrastive terms are added (one
    released version computes them and leaves them out); what an encoder's part of the game gives no other encoder
    sees, the prediction before the exchange included; embeddings come from the training pass, not from another one in
    eval mode; among more than two modalities the influence of the others is their mean.
    """

    name = "mcr"
    Settings = MCRSettings
    settings: MCRSettings
    trains_unimodal = True
    exceptions = {"accumulation": "items are exchanged, and compared, within a micro-batch"}  # noqa: RUF012

    def extend(self, classifier: Classifier) -> None:
        dims = classifier.dims
        if self.settings.contrastive_weight and len(set(dims.values())) > 1:
            sizes = ", ".join(f"{m} {d}" for m, d in dims.items())
            raise ConfigError(
                f"balancing.method: mcr compares embeddings of all modalities, which differ in size ({sizes}); give "
                "model.encoders equal dims, or set balancing.contrastive_weight to 0"
            )
        if self.settings.bottleneck_weight:
            size = max(dims.values())
            classifier.extra[self.name] = nn.Sequential(
                nn.Linear(self.classes, size, bias=False),
                nn.ReLU(),
                nn.Linear(size, sum(dims.values()), bias=False),
            )

    def step(self, ctx: Context, batches: list[Batch]) -> Tensor:
        strengths = self.strengths(ctx).float()
        losses = []
        for i, batch in enumerate(batches):
            with no_sync(ctx.module, i == len(batches) - 1):
                with ctx.autocast():
                    output = ctx.module(batch.inputs, batch.present)
                self.after_forward(ctx, output, batch, i == len(batches) - 1)
                own = multi_loss(output, batch, self.settings.unimodal_weight)
                if self.settings.bottleneck_weight:
                    own = own + self.settings.bottleneck_weight * self._bottleneck(ctx, output, batch, strengths)
                rows = math.ceil(batch.total / (ctx.workers.world * len(batches)))
                together = self._together(ctx, gather_rows(ctx, output, batch, rows), batch.total, i, strengths)
                # Every worker has the whole of the second part, whose gradient it scales where its own rows enter.
                (own * ctx.workers.world + together).backward()
            losses.append((own + together / ctx.workers.world).detach())
        return torch.stack(losses).sum()

    def _bottleneck(self, ctx: Context, output: Output, batch: Batch, strengths: Tensor) -> Tensor:
        guess = ctx.classifier.extra[self.name](in_full_precision(output.logits.detach()))
        there = output.present * strengths
        there = torch.cat([there[:, i, None].expand(-1, d) for i, d in enumerate(ctx.classifier.dims.values())], 1)
        errors = (guess - torch.cat([in_full_precision(z) for z in output.embeddings.values()], 1)).square()
        return ((errors * there).mean(1) * batch.weights).sum() / batch.total

    def _together(self, ctx: Context, rows: Rows, total: int, micro: int, strengths: Tensor) -> Tensor:
        """Returns the terms that look across items, of these rows' share of the batch, each as strong as its
        modality's pace."""
        share = len(rows.labels) / total
        loss = torch.zeros((), device=ctx.device)
        if not share:
            return loss
        if self.settings.mipd_weight:
            seed = hashing.digest("permutations", ctx.seed, ctx.step, micro)
            own, other = influence(ctx.classifier, rows, self.settings.permutations, seed)
            ctx.record("influence", own.detach())
            game = GAMES[self.settings.game]
            loss = loss - share * self.settings.mipd_weight * (strengths * (own + game * other)).sum()
        if self.settings.contrastive_weight:
            pooled = ctx.classifier.pooled(rows.fusion_inputs, rows.present)
            views = torch.cat([z[rows.present[:, i]] for i, z in enumerate(pooled.values())])
            labels = torch.cat([rows.labels[rows.present[:, i]] for i in range(len(pooled))])
            weights = strengths.repeat_interleave(rows.present.sum(0))
            loss = loss + share * self.settings.contrastive_weight * contrastive(
                views, labels, self.settings.temperature, weights
            )
        return loss


@dataclass(frozen=True)
class Rows:
    """All workers' real rows of a micro-batch, in the order of the workers; this worker's own carry gradients, times
    the number of workers.

    Attributes:
        fusion_inputs: {m: [N, d_m] or [N, L_m, d_m]}, at least float32.
        present: bool [N, M].
        labels: int64 [N].
    """

    fusion_inputs: dict[str, Tensor]
    present: Tensor
    labels: Tensor


def gather_rows(ctx: Context, output: Output, batch: Batch, most: int) -> Rows:
    """Collects all workers' rows in one reduction.

    Args:
        most: largest number of rows that a worker has.
    """
    inputs = {m: in_full_precision(x) for m, x in output.fusion_inputs.items()}
    everyone = {m: with_gradient(x, float(ctx.workers.world)) for m, x in inputs.items()}
    present, labels, real = output.present, batch.labels, batch.weights > 0
    if ctx.workers.world > 1:
        count = len(labels)
        own = [x.detach().flatten(1) for x in inputs.values()]
        facts = torch.cat([present.to(own[0]), labels[:, None].to(own[0]), real[:, None].to(own[0])], 1)
        mine = torch.cat([*own, facts], 1)
        table = ctx.workers.gather(F.pad(mine, (0, 0, 0, most - count)))
        sizes = [x.shape[1] for x in own]
        *columns, facts = table.split([*sizes, facts.shape[1]], 2)
        for (m, x), column in zip(inputs.items(), columns, strict=True):
            parts = list(column.unflatten(2, x.shape[1:]))
            parts[ctx.workers.rank] = torch.cat([everyone[m], parts[ctx.workers.rank][count:]])
            everyone[m] = torch.cat(parts)
        facts = facts.flatten(0, 1)
        modalities = present.shape[1]
        present, labels, real = facts[:, :modalities] > 0, facts[:, modalities].long(), facts[:, -1] > 0
    return Rows({m: x[real] for m, x in everyone.items()}, present[real], labels[real])


def influence(classifier: Classifier, rows: Rows, permutations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns how far the fused prediction moves when a modality's embeddings are exchanged between items, as each
    encoder may change it.

    Args:
        classifier: whose fusion predicts.
        rows: of the batch.
        permutations: number of random exchanges that divergences are averaged over.
        seed: of the exchanges.

    Returns:
        (own [M], other [M]): at j, the divergence in nats for modality j, and the mean of those for all others, with
        gradients for encoder j and the fusion only.
    """
    names = classifier.modalities
    exchanged = {
        m: _exchanges(rows.present[:, i], permutations, hashing.digest("exchange", seed, m))
        for i, m in enumerate(names)
    }
    own, other = [], []
    for j in names:
        inputs = {m: x if m == j else x.detach() for m, x in rows.fusion_inputs.items()}
        before = in_full_precision(classifier.fuse(inputs, rows.present)).log_softmax(1)
        moved = {m: _divergence(classifier, rows, inputs, before, m, exchanged[m]) for m in names}
        own.append(moved.pop(j))
        other.append(torch.stack(list(moved.values())).mean() if moved else torch.zeros_like(own[-1]))
    return torch.stack(own), torch.stack(other)


def contrastive(views: Tensor, labels: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Returns the supervised NT-Xent loss: of every pair of views with one label, -log of its part in the sum of its
    similarity and those to all views with other labels; the mean over pairs.

    Args:
        views: [N, d], normalised here.
        labels: int64 [N].
        temperature: that cosine similarities are divided by.
        weights: [N], of the pairs that each view is the first of; 1 where not given.

    Returns:
        A scalar; 0 where no two views have one label.
    """
    similarity = F.normalize(views, dim=1) @ F.normalize(views, dim=1).T / temperature
    same = labels[:, None] == labels
    pairs = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    # Finite, so that a view whose label all others share has a gradient of 0 and not of 0/0.
    negatives = torch.logsumexp(torch.where(same, -1e9, similarity), 1, keepdim=True)
    losses = torch.where(pairs, F.softplus(negatives - similarity), 0.0)
    if weights is not None:
        losses = weights[:, None] * losses
    return losses.sum() / pairs.sum().clamp(min=1)


def _exchanges(there: Tensor, permutations: int, seed: int) -> Tensor:
    """Returns permutations [P, N] of rows that leave those without the modality where they are."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nonzero(there.cpu()).flatten()
    exchanges = torch.arange(len(there)).repeat(permutations, 1)
    for p in range(permutations):
        exchanges[p, rows] = rows[torch.randperm(len(rows), generator=generator)]
    return exchanges.to(there.device)


def _divergence(
    classifier: Classifier, rows: Rows, inputs: Mapping[str, Tensor], before: Tensor, m: str, exchanges: Tensor
) -> Tensor:
    """Returns the mean Jensen-Shannon divergence between predictions before and after exchanges of one modality."""
    count = len(exchanges)
    repeated = {
        name: x[exchanges.flatten()] if name == m else x.repeat(count, *[1] * (x.dim() - 1))
        for name, x in inputs.items()
    }
    after = in_full_precision(classifier.fuse(repeated, rows.present.repeat(count, 1))).log_softmax(1)
    before = before.repeat(count, 1)
    middle = torch.logaddexp(before, after) - math.log(2)
    sides = [F.kl_div(middle, side, reduction="batchmean", log_target=True) for side in (before, after)]
    return (sides[0] + sides[1]) / 2
