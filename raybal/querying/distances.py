"""Norms and squared distances of factored embeddings E_i = vec(q_i (x) h_i), from q [n, C] and h [n, D] alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from raybal.errors import RaybalError

#: Rows whose distances are computed at a time: what the caches hold of a CPU, and what fills a GPU.
TILE = {"cpu": 2048, "cuda": 1 << 16}
#: Below this share of the norm a float32 distance is cancellation noise and is computed again in float64.
NOISE = 1e-4
#: Centres come in multiples of this: matrix products run the last few columns of other numbers by kernels whose
#: rounding depends on where in the tile a row lies.
CENTRES = 16
#: Below this share of the norms a float64 distance is rounding: the embeddings are equal.
_EQUAL = 1e-12


class NotFiniteError(RaybalError):
    """Factors that are not finite.

    Args:
        count: number of rows that have some.
        row: the first of them.
    """

    def __init__(self, count: int, row: int) -> None:
        super().__init__(f"the factors of {count} items are not finite, the first in row {row}")
        self.row = row


class Centres:
    """Centres, as tiles of rows are multiplied with them.

    Args:
        q, h: factors [k, C] and [k, D].
        tile: number of rows of a tile. A short one is computed among as many rows, so that every row is computed by
            the same kernel whatever its neighbours.
    """

    def __init__(self, q: Tensor, h: Tensor, tile: int) -> None:
        self.q, self.h = q, h
        self.norm = squared_norms(q, h).float()
        self._scaled, self._other = (-2 * q.float()).T.contiguous(), h.float().T.contiguous()
        # Fresh memory for every tile would cost as much as a third of the products.
        self._rows = [torch.zeros(tile, x.shape[1], device=q.device) for x in (q, h)]
        self._products = torch.empty(2, tile, len(q), device=q.device)

    def exact(self, q: Tensor, h: Tensor) -> Tensor:
        """Returns squared distances [n, k] in float64, of which a row's do not depend on the rows beside it."""
        return reproducible_distances(q, h, self.q, self.h)

    def beside(self, q: Tensor, h: Tensor) -> Tensor:
        """Returns ||E_c||^2 - 2 <E_i, E_c> of one tile's rows, [n, k], until the next call."""
        count = len(q)
        q, h = (self._whole(x, into) for x, into in zip((q, h), self._rows, strict=True))
        product, other = self._products
        torch.mm(h, self._other, out=other)
        torch.mm(q, self._scaled, out=product)
        return torch.addcmul(self.norm, product, other, out=product)[:count]

    @staticmethod
    def _whole(x: Tensor, into: Tensor) -> Tensor:
        if x.dtype == into.dtype and len(x) == len(into):
            return x
        into[: len(x)].copy_(x)
        return into


def squared_norms(q: Tensor, h: Tensor) -> Tensor:
    """Returns the squared norms of the embeddings, ||q_i||^2 ||h_i||^2, summed in float64."""

    def sums(x: Tensor) -> Tensor:
        tile = min(TILE[x.device.type], len(x))
        found = torch.empty(len(x), dtype=torch.float64, device=x.device)
        memory = torch.empty(tile, x.shape[1], dtype=torch.float64, device=x.device)
        for start in range(0, len(x), tile or 1):
            part = x[start : start + tile]
            torch.sum(memory[: len(part)].copy_(part).square_(), 1, out=found[start : start + tile])
        return found

    return sums(q) * sums(h)


def finite_norms(q: Tensor, h: Tensor) -> Tensor:
    """Returns `squared_norms`.

    Raises:
        NotFiniteError: a factor is not finite.
    """
    norms = squared_norms(q, h)
    bad = torch.nonzero(~torch.isfinite(norms)).flatten()
    if len(bad):
        raise NotFiniteError(len(bad), int(bad[0]))
    return norms


def exact_distances(q: Tensor, h: Tensor, q_other: Tensor, h_other: Tensor) -> Tensor:
    """Returns squared distances [n, k] of embeddings in float64; exactly 0 for equal ones.

    The last bits depend on where a row lies among the others: two that are equal may seem to be at different distances
    of a third. `reproducible_distances` have no such thing.
    """
    return _distances(q, h, q_other, h_other, lambda x, y: x.double() @ y.double().T)


def reproducible_distances(q: Tensor, h: Tensor, q_other: Tensor, h_other: Tensor) -> Tensor:
    """Returns `exact_distances`, the same to the bit whatever rows lie beside, at four times the work."""
    return _distances(q, h, q_other, h_other, reproducible_product)


def _distances(
    q: Tensor, h: Tensor, q_other: Tensor, h_other: Tensor, product: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    norms = squared_norms(q, h)[:, None] + squared_norms(q_other, h_other)[None]
    d2 = norms - 2 * (product(q, q_other) * product(h, h_other))
    return torch.where(d2 <= _EQUAL * norms, 0.0, d2)


def reproducible_product(x: Tensor, y: Tensor) -> Tensor:
    """Returns x @ y.T [n, k] in float64, each number of which depends on its two rows alone.

    Every row is written as a power of two times whole numbers in two parts, so few bits each that sums of their
    products are exact in whatever order they are added (Ozaki, Ogita, Oishi and Rump, Numerical Algorithms 59, 2012).
    Two parts hold 40 bits below a row's largest number, at up to 8192 columns.
    """
    bits = (53 - math.ceil(math.log2(max(x.shape[1], 2)))) // 2
    (x_unit, x_high, x_low), (y_unit, y_high, y_low) = (_whole_parts(part, bits) for part in (x, y))
    cross = x_high @ y_low.T + x_low @ y_high.T
    return (x_high @ y_high.T + (cross + (x_low @ y_low.T) * 2.0**-bits) * 2.0**-bits) * x_unit * y_unit.T


def _whole_parts(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (unit [n, 1], high [n, d], low [n, d]) with x = unit (high + low / 2^bits), high and low whole."""
    x = x.double()
    unit = torch.exp2((torch.frexp(x.abs().amax(1, keepdim=True)).exponent - bits).double())
    x = x / unit
    high = x.round()
    return unit, high, ((x - high) * 2.0**bits).round()
