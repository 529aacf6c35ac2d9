"""Joint training: the fused loss alone, the baseline that learns lazily."""

from __future__ import annotations

from raybal.balancing.base import BalancingMethod


class Joint(BalancingMethod):
    """Trains encoders and fusion on the fused cross-entropy alone. The unimodal heads learn on detached embeddings
    and change nothing else."""

    name = "joint"
