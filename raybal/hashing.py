"""Randomness that depends on what an item is, never on where it lies.

Batches, splits, seeds and proposals are drawn by hashing (key, id), so that they do not change with the number
of workers, the sharding or the order of rows. Everything is uint64 arithmetic in numpy: 8 bytes of BLAKE2b for
an id, then the SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014) to mix keys in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def digest(*parts: object) -> int:
    """Returns a 63-bit integer that is a hash of the parts (their text), e.g. to derive one seed from another."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def hash_ids(ids: Iterable[str]) -> UInt64:
    """Returns one uint64 [n] per id; equal ids give equal hashes on every machine."""
    raw = b"".join(hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)


def _finalise(z: UInt64) -> UInt64:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def mix(hashes: UInt64, *keys: int | NDArray[np.int64]) -> UInt64:
    """Returns hashes [n] re-hashed under keys (integers, or one for each hash); a different key gives an independent
    stream."""
    mixed = np.asarray(hashes, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            number = np.uint64(key % 2**64) if isinstance(key, int) else key.astype(np.uint64)
            mixed = _finalise(mixed + _GAMMA * (number + np.uint64(1)))
    return mixed


def uniform(hashes: UInt64) -> NDArray[np.float64]:
    """Returns one number in the open interval (0, 1) per hash, with 53 random bits."""
    # The largest would round up to 1.
    return np.minimum(((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)


def order(ids: Iterable[str], *keys: int) -> NDArray[np.int64]:
    """Returns the positions [n] of ids in a random order that depends on the keys and the ids alone."""
    listed = [str(i) for i in ids]
    mixed = mix(hash_ids(listed), *keys)
    if len(set(mixed.tolist())) == len(listed):
        return np.argsort(mixed).astype(np.int64)
    return np.lexsort((np.array(listed), mixed)).astype(np.int64)
