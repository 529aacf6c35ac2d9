"""Multi-loss training: the fused loss plus one loss a modality."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raybal.balancing.base import BalancingMethod, BalancingSettings, Context, multi_loss, unimodal_weight
from raybal.data.batches import Batch
from raybal.models.classifier import Output
from raybal.settings import setting


@dataclass(frozen=True)
class MultiLossSettings(BalancingSettings):
    """Settings of multi-loss training. Published weight: 1."""

    method: str = setting("multi_loss", help="balancing method")
    unimodal_weight: float = unimodal_weight()


class MultiLoss(BalancingMethod):
    """Trains every encoder on its own cross-entropy as well as on the fused one: L = CE_fused + w sum_m CE_m.

    The fair baseline of modulation methods ("Multi-Loss" in Kontras et al., BMVC 2024): MLB with every k = 1.
    """

    name = "multi_loss"
    Settings = MultiLossSettings
    settings: MultiLossSettings
    trains_unimodal = True

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        return multi_loss(output, batch, self.settings.unimodal_weight)
