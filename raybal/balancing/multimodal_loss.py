"""The MultiModal loss: proxies in the joint space of all modalities' decisions.

Moon and Lee, "Deep metric loss for multimodal learning", Machine Learning 114, 2025 (arXiv 2308.10486).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybal.balancing.base import Context, Predictor, in_full_precision, row_losses, unimodal_loss
from raybal.balancing.paced import PacedMethod, PacedSettings
from raybal.data.batches import Batch
from raybal.models.classifier import Classifier, Output
from raybal.settings import setting

log = logging.getLogger(__name__)

EPSILON = 1e-12


@dataclass(frozen=True)
class MultiModalLossSettings(PacedSettings):
    """Settings of the MultiModal loss. Published: 20 proxies, gamma 0.1, Adam at 5e-4 with weight decay 1e-4.

    The pace is that of the proxies: at strength 0 the loss is that of the plain sum of the scores.
    """

    method: str = setting("multimodal_loss", help="balancing method")
    proxies: int = setting(20, ge=1, help="proxies a class", search={"kind": "choice", "values": [1, 5, 10, 20, 50]})
    gamma: float = setting(
        0.1,
        gt=0,
        help="temperature of the similarities",
        search={"kind": "loguniform", "low": 0.02, "high": 0.5},
    )
    initial: Literal["signed", "positive"] = setting(
        "signed",
        help="initial proxies: signed as published (half of their entries start dead, and revive only with Adam's "
        "coupled weight decay), or their absolute values",
    )
    unimodal_weight: float = setting(
        0.0,
        ge=0,
        help="weight of each head's own cross-entropy beside the loss; 0 as published. Above 0 it keeps a modality's "
        "scores from meaning other classes than their names say",
        search={"kind": "choice", "values": [0.0, 0.1, 0.3, 1.0]},
    )


class MultiModalLoss(nn.Module):
    """The loss itself, with its proxies: there is one set for all modalities, over [modality x class] scores.

    Args:
        num_classes: C.
        num_modalities: M.
        num_proxies: K, proxies a class.
        gamma: temperature that similarities are divided by.

    Attributes:
        proxies: [M*C, C*K]; row m*C+c is modality m's class c, column c*K+k is proxy k of class c.
        strength: scalar in [0, 1], of the terms that the proxies take part in; at 0 the logits are the plain sum of the
            modalities' scores.
    """

    strength: Tensor

    def __init__(self, num_classes: int, num_modalities: int, num_proxies: int = 20, gamma: float = 0.1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_modalities = num_modalities
        self.num_proxies = num_proxies
        self.gamma = gamma
        bound = (num_classes * num_proxies) ** -0.5
        self.proxies = nn.Parameter(
            torch.empty(num_modalities * num_classes, num_classes * num_proxies).uniform_(-bound, bound)
        )
        self.register_buffer("strength", torch.tensor(1.0))

    def logits(self, scores: Tensor) -> Tensor:
        """Returns S + attended + plain sum, [N, C], at least in float32, of scores [N, M*C], modality-major; zeros
        where a modality is missing."""
        with torch.autocast(scores.device.type, enabled=False):
            scores = in_full_precision(scores)
            proxies = F.normalize(in_full_precision(self.proxies).clamp(min=0), dim=0, eps=EPSILON)
            similarity = F.normalize(scores, dim=1, eps=EPSILON) @ proxies
            sharpened = similarity / self.gamma
            shape = (len(scores), self.num_classes, self.num_proxies)
            # Proxy k of a class competes with proxy k of the other classes.
            among_classes = sharpened.reshape(shape).softmax(1)
            nearest = (among_classes * similarity.reshape(shape)).sum(2)
            attention = sharpened.softmax(1) @ proxies.T
            attended, plain = self._sum_over_modalities(scores * attention), self._sum_over_modalities(scores)
            return plain + self.strength * (nearest + attended)

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy of `logits` (a scalar) for labels int64 [N]."""
        return F.cross_entropy(self.logits(scores), labels)

    def _sum_over_modalities(self, scores: Tensor) -> Tensor:
        return scores.reshape(len(scores), self.num_modalities, self.num_classes).sum(1)


class MultiModal(PacedMethod):
    """Trains and predicts through the MultiModal loss on the probabilities of the unimodal heads.

    The fusion head has no part in it. A missing modality is a block of zeros.

    Departures from the released code: the loss is computed at least in float32 and never casts its parameter; the
    proxies are saved with the model; a head whose scores are worse than guessing is reported, since the loss alone
    does not tie a modality's scores to the classes of their names, and `unimodal_weight` does.
    """

    name = "multimodal_loss"
    Settings = MultiModalLossSettings
    settings: MultiModalLossSettings
    trains_unimodal = True
    acts_by_modality = False

    def __init__(self, settings: MultiModalLossSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self._hits: Tensor | None = None
        self._warned: set[str] = set()

    def extend(self, classifier: Classifier) -> None:
        classifier.fusion.requires_grad_(False)
        loss = MultiModalLoss(self.classes, len(self.modalities), self.settings.proxies, self.settings.gamma)
        if self.settings.initial == "positive":
            with torch.no_grad():
                loss.proxies.abs_()
        classifier.extra[self.name] = loss

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        logits = multimodal_logits(ctx.classifier, output.unimodal_logits, output.present)
        loss = row_losses(logits, batch).sum() / batch.total
        if self.settings.unimodal_weight:
            loss = loss + self.settings.unimodal_weight * unimodal_loss(output, batch)
        return loss

    def after_forward(self, ctx: Context, output: Output, batch: Batch, last: bool) -> None:
        super().after_forward(ctx, output, batch, last)
        rows = batch.weights[:, None] * output.present
        right = torch.stack([z.argmax(1) == batch.labels for z in output.unimodal_logits.values()], 1)
        hits = torch.stack([(right * rows).sum(0), rows.sum(0)])
        self._hits = hits if self._hits is None else self._hits + hits

    def step(self, ctx: Context, batches: list[Batch]) -> Tensor:
        _proxies(ctx.classifier).strength.copy_(self.strength(ctx))
        return super().step(ctx, batches)

    def after_epoch(self, ctx: Context) -> None:
        assert self._hits is not None
        hits, counts = ctx.workers.sum(self._hits).tolist()
        self._hits = None
        for m, right, items in zip(self.modalities, hits, counts, strict=True):
            if ctx.workers.rank == 0 and m not in self._warned and is_switched(right, items, self.classes):
                self._warned.add(m)
                log.warning(
                    "the scores of %s are worse than guessing on the training items: they stand for other classes than "
                    "their own, and cannot be read as predictions; unimodal_weight 0.1 among the method's settings "
                    "prevents that",
                    m,
                )

    def predictor(self, classifier: Classifier) -> Predictor:
        return _ThroughProxies(classifier)


def multimodal_logits(classifier: Classifier, unimodal_logits: Mapping[str, Tensor], present: Tensor) -> Tensor:
    """Returns the loss module's logits [B, C] of each modality's own logits {m: [B, C]}, masked by bool [B, M]."""
    scores = torch.cat(
        [in_full_precision(z).softmax(1) * present[:, i, None] for i, z in enumerate(unimodal_logits.values())], 1
    )
    return _proxies(classifier).logits(scores)


def _proxies(classifier: Classifier) -> MultiModalLoss:
    loss = classifier.extra[MultiModal.name]
    assert isinstance(loss, MultiModalLoss)
    return loss


def is_switched(right: float, items: float, classes: int) -> bool:
    """Returns whether a head that is right on so many items does worse than guessing among the classes, by more than
    three standard errors."""
    guessing = 1 / classes
    return items > 0 and right / items < guessing - 3 * (guessing * (1 - guessing) / items) ** 0.5


class _ThroughProxies(Predictor):
    def logits(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        heads = self.classifier.unimodal_logits(self.classifier.pooled(fusion_inputs, present))
        return multimodal_logits(self.classifier, heads, present)
