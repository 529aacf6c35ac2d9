"""Multi-loss training: the fused loss plus one loss a modality."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raybal.balancing.base import BalancingMethod, BalancingSettings, Context, fused_loss, unimodal_loss
from raybal.data.batches import Batch
from raybal.models.classifier import Output
from raybal.settings import setting


@dataclass(frozen=True)
class MultiLossSettings(BalancingSettings):
    """Settings of multi-loss training. Published weight: 1."""

    method: str = setting("multi_loss", help="balancing method")
    unimodal_weight: float = setting(
        1.0,
        gt=0,
        help="weight of each modality's own loss beside the fused one",
        search={"kind": "loguniform", "low": 0.01, "high": 1.0},
    )


class MultiLoss(BalancingMethod):
    """Trains every encoder on its own cross-entropy as well as on the fused one: L = CE_fused + w sum_m CE_m.

    The fair baseline of modulation methods ("Multi-Loss" in Kontras et al., BMVC 2024): MLB with every k = 1.
    """

    name = "multi_loss"
    Settings = MultiLossSettings
    settings: MultiLossSettings
    trains_unimodal = True

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        return fused_loss(output, batch) + self.settings.unimodal_weight * unimodal_loss(output, batch)
