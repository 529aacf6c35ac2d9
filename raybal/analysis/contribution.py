"""How much each modality contributes to one prediction: exact Shapley values over masked modalities.

Players are the modalities, the value of a coalition is the class probability that the predictor gives when all
others are masked (Shen et al., ACM MM 2023, for two modalities; any number here).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

#: Which players take part, in order.
Coalition = tuple[bool, ...]


def shapley_values(logits: Callable[[Tensor], Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (phi [n, M, C], probabilities [n, C]).

    phi[:, m] is modality m's Shapley value of each class's probability; over modalities it sums to the probability
    with all that is present minus the probability with everything masked. A missing modality has 0.

    Args:
        logits: maps a mask bool [n, M] to logits [n, C] with the False modalities masked.
        present: bool [n, M].
    """
    modalities = present.shape[1]
    values: dict[Coalition, Tensor] = {}
    for coalition in itertools.product((False, True), repeat=modalities):
        mask = present & torch.tensor(coalition, device=present.device)
        predicted = logits(mask)
        values[coalition] = (predicted if predicted.dtype == torch.float64 else predicted.float()).softmax(1)
    return shares_of_players(values), values[(True,) * modalities]


def shares_of_players(values: Mapping[Coalition, Tensor]) -> Tensor:
    """Returns the Shapley value of each player, [n, M, C], of the values [n, C] of all 2^M coalitions."""
    players = len(next(iter(values)))
    shares = []
    for m in range(players):
        share = torch.zeros_like(values[(True,) * players])
        for coalition, value in values.items():
            if coalition[m]:
                continue
            size = sum(coalition)
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            joined = (*coalition[:m], True, *coalition[m + 1 :])
            share = share + weight * (values[joined] - value)
        shares.append(share)
    return torch.stack(shares, 1)


def contributions(phi: Tensor, classes: Tensor) -> Tensor:
    """Returns each modality's share [n, M] of the absolute Shapley values of one class an item; shares sum to 1.

    Where no modality changes the class's probability the shares are equal.

    Args:
        phi: [n, M, C].
        classes: int64 [n], usually the predicted class.
    """
    index = classes[:, None, None].expand(-1, phi.shape[1], 1)
    size = phi.gather(2, index).squeeze(2).abs()
    total = size.sum(1, keepdim=True)
    nothing = total <= torch.finfo(phi.dtype).tiny
    return torch.where(nothing, 1 / phi.shape[1], size / total.masked_fill(nothing, 1.0))
