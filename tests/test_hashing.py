"""Randomness by hash: reference values, uniformity, independence, independence of order."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from raybal import hashing

# The first outputs of SplitMix64 for two seeds, as published with its reference code.
SPLITMIX64 = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431],
}
IDS = [f"clip-{i}.mp4" for i in range(20_000)]
HASHES = hashing.hash_ids(IDS)


@pytest.mark.parametrize("seed", SPLITMIX64)
def test_key_k_gives_output_k_of_splitmix64(seed):
    given = [int(hashing.mix(np.array([seed], np.uint64), k)[0]) for k in range(4)]
    assert given == SPLITMIX64[seed]


def test_hashes_never_change():
    # What a store has drawn must be drawn again by any later version, on any machine.
    assert hashing.hash_ids(["a", "äöü", ""]).tolist() == [0x2F42665B399EF840, 0x75CED626789644E6, 0xB4B2797457A0A6E4]
    assert hashing.digest(0, "split") == 3692668185207323792
    assert hashing.order(["a", "b", "c", "d", "e"], 0).tolist() == [0, 1, 4, 2, 3]


def test_equal_ids_give_equal_hashes_and_different_ids_different_ones():
    assert hashing.hash_ids(iter(["x", "y", "x"])).tolist()[::2] == [hashing.hash_ids(["x"])[0]] * 2
    assert len(set(HASHES.tolist())) == len(IDS)


def test_digest_is_a_seed_that_torch_and_numpy_take():
    seeds = [hashing.digest("a", i) for i in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == len(seeds)
    assert hashing.digest("ab", "c") != hashing.digest("a", "bc")
    # All bits are used.
    assert {bit for seed in seeds for bit in range(63) if seed >> bit & 1} == set(range(63))


@pytest.mark.parametrize("keys", [(), (0,), (7,), (-1,), (3, 5), (2**62, -(2**62))])
def test_uniform(keys):
    u = hashing.uniform(hashing.mix(HASHES, *keys))
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.chisquare(np.bincount((u * 64).astype(int), minlength=64)).pvalue > 1e-3


def test_uniform_of_numbers_that_follow_each_other():
    u = hashing.uniform(hashing.mix(np.arange(20_000, dtype=np.uint64), 0))
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    pairs = np.bincount((u[:-1] * 8).astype(int) * 8 + (u[1:] * 8).astype(int), minlength=64)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_uniform_leaves_out_both_ends():
    u = hashing.uniform(np.array([0, 1, 2**11, 2**63, 2**64 - 2**11 - 1, 2**64 - 1], np.uint64))
    assert (u > 0).all()
    assert (u < 1).all()
    assert np.isfinite(np.log(u)).all()
    assert np.isfinite(np.log1p(-u)).all()


def test_keys_give_independent_streams():
    keys = [0, 1, 2, -1, 2**32, 2**63 - 1]
    streams = np.stack([hashing.uniform(hashing.mix(HASHES, k)) for k in keys])
    correlation = np.corrcoef(streams)[np.triu_indices(len(keys), 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(len(IDS))
    for a, b in itertools.combinations(streams, 2):
        cells = np.bincount((a * 8).astype(int) * 8 + (b * 8).astype(int), minlength=64)
        assert stats.chisquare(cells).pvalue > 1e-5


def test_a_neighbouring_key_changes_half_of_the_bits():
    for k in (0, 1, 255, -5):
        changed = hashing.mix(HASHES, k) ^ hashing.mix(HASHES, k + 1)
        share = np.unpackbits(changed.view(np.uint8)).reshape(len(IDS), 64).mean(0)
        assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(len(IDS))


def test_the_order_of_keys_matters():
    assert not np.array_equal(hashing.mix(HASHES, 1, 2), hashing.mix(HASHES, 2, 1))
    assert np.array_equal(hashing.mix(HASHES, 1, 2), hashing.mix(hashing.mix(HASHES, 1), 2))


def test_a_key_for_each_hash_equals_the_same_keys_one_by_one():
    keys = np.array([0, 1, 5, -1, -7, 2**63 - 1, -(2**63)], np.int64)
    together = hashing.mix(HASHES[: len(keys)], 3, keys, 1)
    one_by_one = [int(hashing.mix(HASHES[i : i + 1], 3, int(k), 1)[0]) for i, k in enumerate(keys)]
    assert together.tolist() == one_by_one


def test_negative_and_large_keys_overflow_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hashing.mix(HASHES[:3], -1).tolist() == hashing.mix(HASHES[:3], 2**64 - 1).tolist()
        assert hashing.mix(HASHES[:3], -1).tolist() != hashing.mix(HASHES[:3], 1).tolist()


def test_order_depends_on_ids_and_keys_alone():
    ids = IDS[:500]
    shuffled = np.random.default_rng(0).permutation(ids).tolist()
    first = [ids[i] for i in hashing.order(ids, 4, 2)]
    assert sorted(first) == sorted(ids)
    assert [shuffled[i] for i in hashing.order(shuffled, 4, 2)] == first
    assert [ids[i] for i in hashing.order(ids, 4, 3)] != first
    # Without some of them the rest stay as they were.
    rest = [i for i in ids if not i.endswith("3.mp4")]
    assert [rest[i] for i in hashing.order(rest, 4, 2)] == [i for i in first if i in set(rest)]


def test_every_order_is_equally_likely():
    ids = ["a", "b", "c", "d"]
    seen = dict.fromkeys(itertools.permutations(range(4)), 0)
    for key in range(4800):
        seen[tuple(hashing.order(ids, key).tolist())] += 1
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_repeated_ids_are_ordered_too():
    order = hashing.order(["b", "a", "b", "c"], 1).tolist()
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(2)) == 1


def test_nothing_gives_nothing():
    assert hashing.order([], 1).tolist() == []
    assert hashing.uniform(hashing.mix(hashing.hash_ids([]), 1)).shape == (0,)
