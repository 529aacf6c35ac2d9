"""G-Blending: losses weighted by how each head generalises and overfits.

Wang, Tran and Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?", CVPR 2020.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from raybal.balancing.base import BalancingSettings, Context, fused_loss, unimodal_losses
from raybal.balancing.joint import Joint
from raybal.balancing.paced import PacedMethod, PacedSettings
from raybal.balancing.unimodal import Unimodal, UnimodalSettings
from raybal.data.batches import Batch, Items
from raybal.models.classifier import Classifier, Output
from raybal.settings import setting

SMALLEST_OVERFITTING = 1e-6

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GBlendingSettings(PacedSettings):
    """Settings of G-Blending. Published: online, weights renewed every 10 epochs (Kinetics: 10, AudioSet: 5)."""

    method: str = setting("g_blending", help="balancing method")
    mode: Literal["online", "offline"] = setting(
        "online", help="weights renewed at the start of every super-epoch, or estimated once, before training"
    )
    super_epoch: int = setting(
        10,
        ge=1,
        help="epochs that each estimate trains copies of the model for, and that its weights hold for (online)",
        search={"kind": "choice", "values": [5, 10, 20]},
    )

    published = ({"super_epoch": 5},)

    holdout_share: float = setting(
        0.1, gt=0, lt=1, help="share of the labelled training items that generalisation is measured on, not trained on"
    )


class GBlending(PacedMethod):
    """Weights the losses of all heads, fused and unimodal, by generalisation over squared overfitting.

    At each estimate copies of the model are trained for a super-epoch, one on every modality alone and one on the
    fused loss alone; a head's generalisation G is the drop of its held-out loss, its overfitting O the growth of the
    gap between held-out and training loss. Modalities alone share no parameter, so one copy trains them all: an
    estimate costs two super-epochs of training for any number of modalities, not one a head.

    The pace moves the weights between 1 (the plain sum of all losses) and the estimate, that of the fused loss as far
    as the furthest modality's.

    Departures from the released versions: losses are means, where theirs are sums over loaders of different lengths;
    generalisation is measured on held-out training items, not on those that choose the model; a head that was not seen
    to overfit at all does not divide by zero. Weights have the size of G, so a head whose held-out loss rose counts
    like one whose loss fell as far: as in the released versions, where the paper is silent.
    """

    name = "g_blending"
    Settings = GBlendingSettings
    settings: GBlendingSettings
    trains_unimodal = True

    def __init__(self, settings: GBlendingSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        # Of each modality and of the fused head, in this order.
        self._estimate = torch.ones(len(modalities) + 1, dtype=torch.float64)
        self._estimates = 0
        self._weights = self._estimate

    @property
    def holdout_share(self) -> float:
        return self.settings.holdout_share

    def before_epoch(self, ctx: Context) -> None:
        due = ctx.epoch // self.settings.super_epoch + 1 if self.settings.mode == "online" else 1
        if self._estimates >= due or ctx.held_out is None:
            return
        # Past its end a schedule has nothing left to learn at.
        epochs = min(self.settings.super_epoch, ctx.epochs - ctx.epoch)
        if ctx.workers.rank == 0:
            log.info("epoch %d: copies train for %d epochs to weigh the losses", ctx.epoch, epochs)
        parts = (ctx.train, ctx.held_out)
        start = torch.stack([self._losses(ctx, ctx.classifier, part) for part in parts])
        alone = ctx.rehearse(Unimodal(UnimodalSettings(), self.modalities, self.classes), epochs)
        end = torch.stack([self._losses(ctx, alone, part) for part in parts])
        joint = ctx.rehearse(Joint(BalancingSettings(Joint.name), self.modalities, self.classes), epochs)
        end[:, -1] = torch.stack([self._losses(ctx, joint, part)[-1] for part in parts])
        self._estimate = weights(start[0], end[0], start[1], end[1])
        self._estimates = due

    def _losses(self, ctx: Context, classifier: Classifier, items: Items) -> Tensor:
        """Returns the mean loss of each head, the fused one last; 0 of a modality that no item has."""
        found = ctx.evaluate(classifier, items)
        return torch.tensor(
            [found[head]["nll"] if found[head] else 0.0 for head in (*self.modalities, "fused")], dtype=torch.float64
        )

    def step(self, ctx: Context, batches: list[Batch]) -> Tensor:
        self._estimate = self._estimate.to(ctx.device)
        strengths = self.strengths(ctx)
        self._weights = 1 + torch.cat([strengths, strengths.amax()[None]]) * (self._estimate - 1)
        ctx.record("loss_weight", self._weights)
        return super().step(ctx, batches)

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        losses = torch.stack([*unimodal_losses(output, batch).values(), fused_loss(output, batch)])
        return (self._weights.to(losses) * losses).sum()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"estimate": self._estimate, "estimates": self._estimates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._estimate, self._estimates = state["estimate"].cpu(), state["estimates"]


def weights(train_start: Tensor, train_end: Tensor, val_start: Tensor, val_end: Tensor) -> Tensor:
    """Returns the weights of the heads' losses, |G / O^2| normalised to sum to 1.

    G = val_start - val_end, O = (val_end - train_end) - (val_start - train_start), from below 1e-6 in size.

    Args:
        train_start, train_end: [H], mean training loss of each head at both ends of a super-epoch.
        val_start, val_end: [H], the same on held-out items.

    Returns:
        [H]; all equal where no head has changed.
    """
    generalisation = val_start - val_end
    overfitting = ((val_end - train_end) - (val_start - train_start)).abs().clamp(min=SMALLEST_OVERFITTING)
    ratio = (generalisation / overfitting**2).abs()
    total = ratio.sum()
    return torch.where(total > 0, ratio / torch.where(total > 0, total, 1.0), torch.full_like(ratio, 1 / len(ratio)))
