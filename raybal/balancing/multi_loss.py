"""Multi-loss training: the fused loss plus one loss a modality, all of weight 1."""

from __future__ import annotations

from raybal.balancing.base import BalancingMethod


class MultiLoss(BalancingMethod):
    """Trains every encoder on its own cross-entropy as well as on the fused one: L = CE_fused + sum_m CE_m.

    The fair baseline of modulation methods ("Multi-Loss" in Kontras et al., BMVC 2024): MLB with every k = 1.
    """

    name = "multi_loss"
    trains_unimodal = True
