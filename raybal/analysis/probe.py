"""Linear probes: how much of the classes a frozen encoder's embeddings hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Penalties on the squared weights that validation chooses from.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
ITERATIONS = 200


def linear_probe(
    train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor] | None, embeddings: Tensor, classes: int
) -> Tensor:
    """Fits multinomial logistic regression on embeddings and predicts.

    Args:
        train: (embeddings [n, d], labels int64 [n]); columns are standardised by them.
        validation: the same, which chooses the penalty; None takes 0.01.
        embeddings: [k, d], to predict.
        classes: C.

    Returns:
        Predicted classes, int64 [k].
    """
    rows, labels = train[0].double(), train[1]
    mean, spread = rows.mean(0), rows.std(0, correction=0).clamp(min=1e-8)

    def logits(weights: Tensor, values: Tensor) -> Tensor:
        return F.linear((values.double() - mean) / spread, weights[:, :-1], weights[:, -1])

    if validation is None:
        return logits(_fit((rows - mean) / spread, labels, classes, 1e-2), embeddings).argmax(1)
    fits = [_fit((rows - mean) / spread, labels, classes, penalty) for penalty in PENALTIES]
    losses = [float(F.cross_entropy(logits(w, validation[0]), validation[1])) for w in fits]
    return logits(fits[losses.index(min(losses))], embeddings).argmax(1)


@torch.enable_grad()
def _fit(rows: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """Returns weights [C, d + 1], the bias last and without penalty."""
    weights = torch.zeros(classes, rows.shape[1] + 1, dtype=torch.float64, device=rows.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(rows, weights[:, :-1], weights[:, -1]), labels)
        value = value + penalty * weights[:, :-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()
