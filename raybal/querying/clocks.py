"""The hashes of `raybal.hashing` on tensors, on any device: the same 64 bits, held in int64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GAMMA = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def to_tensor(hashes: NDArray[np.uint64], device: torch.device | str = "cpu") -> Tensor:
    """Returns uint64 hashes [n] as int64 with the same bits."""
    return torch.from_numpy(np.ascontiguousarray(hashes).view(np.int64)).to(device)


def mix(hashes: Tensor, *keys: int) -> Tensor:
    """Returns what `hashing.mix` returns for the same bits: hashes [n] re-hashed under each key in turn."""
    for key in keys:
        z = hashes + _signed(_GAMMA * (key % 2**64 + 1) % 2**64)
        z = (z ^ _shifted(z, 30)).mul_(_MIX_1)
        z = (z ^ _shifted(z, 27)).mul_(_MIX_2)
        hashes = z ^ _shifted(z, 31)
    return hashes


def uniform(hashes: Tensor) -> Tensor:
    """Returns what `hashing.uniform` returns: one float64 in (0, 1) per hash."""
    return _shifted(hashes, 11).double().add_(0.5).mul_(2.0**-53).clamp_(max=1 - 2.0**-53)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Returns z >> bits without copies of the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
