"""Each modality alone: the baseline that says what there is to be learnt from one modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from raybal.balancing.base import BalancingMethod, BalancingSettings, Context, Predictor, unimodal_loss
from raybal.data.batches import Batch
from raybal.errors import ConfigError, did_you_mean
from raybal.models.classifier import Classifier, Output
from raybal.settings import setting


@dataclass(frozen=True)
class UnimodalSettings(BalancingSettings):
    """Settings of unimodal training."""

    method: str = setting("unimodal", help="balancing method")
    modality: str | None = setting(None, help="the modality that predicts; none: the pool's first")


class TrainedAlone(BalancingMethod):
    """Trains every encoder on its own head's loss alone, all at once.

    No gradient passes from one modality to another, so each head is what training that modality alone gives, but for
    clipping, which looks at all gradients together.
    """

    trains_unimodal = True

    def extend(self, classifier: Classifier) -> None:
        classifier.fusion.requires_grad_(False)

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        return unimodal_loss(output, batch)


class Unimodal(TrainedAlone):
    """Modalities trained alone, of which one predicts."""

    name = "unimodal"
    Settings = UnimodalSettings
    settings: UnimodalSettings

    def __init__(self, settings: BalancingSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        wanted = self.settings.modality
        if wanted is not None and wanted not in modalities:
            raise ConfigError(
                f"balancing.modality: {wanted!r} is not accepted; the pool has {', '.join(modalities)}"
                f"{did_you_mean(wanted, modalities)}"
            )

    def predictor(self, classifier: Classifier) -> Predictor:
        return _OneHead(classifier, self.settings.modality or self.modalities[0])


class _OneHead(Predictor):
    def __init__(self, classifier: Classifier, modality: str) -> None:
        super().__init__(classifier)
        self.modality = modality

    def logits(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return self.classifier.unimodal_logits(self.classifier.pooled(fusion_inputs, present))[self.modality]
