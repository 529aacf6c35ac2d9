"""Looking at a model between epochs, without changing anything in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal.balancing.base import Context, in_full_precision
from raybal.data.batches import Items, in_batches

BATCH_SIZE = 256


@dataclass(frozen=True)
class Seen:
    """What a worker's part of some items looks like to the encoders.

    Attributes:
        embeddings: {m: [n, d_m]}, at least float32; zeros where the modality is missing.
        present: bool [n, M].
        labels: int64 [n].
    """

    embeddings: dict[str, Tensor]
    present: Tensor
    labels: Tensor


@torch.no_grad()
def look(ctx: Context, items: Items, positions: NDArray[np.int64]) -> Seen:
    """Encodes this worker's contiguous part of the items at some positions, in eval mode."""
    classifier, training = ctx.classifier, ctx.classifier.training
    classifier.eval()
    mine = positions[part_of(ctx, len(positions))]
    found: dict[str, list[Tensor]] = {m: [torch.zeros(0, d, device=ctx.device)] for m, d in classifier.dims.items()}
    for batch in in_batches(items, BATCH_SIZE, ctx.device, mine):
        with ctx.autocast():
            embeddings = classifier.encode(batch.inputs, batch.present).embeddings
        for m, z in embeddings.items():
            found[m].append(in_full_precision(z))
    classifier.train(training)
    return Seen(
        {m: torch.cat(parts) for m, parts in found.items()},
        torch.from_numpy(items.present[mine]).to(ctx.device),
        torch.from_numpy(items.labels[mine]).to(ctx.device),
    )


def part_of(ctx: Context, count: int) -> NDArray[np.int64]:
    """Returns which of so many positions are this worker's: a contiguous part."""
    return np.array_split(np.arange(count), ctx.workers.world)[ctx.workers.rank]
