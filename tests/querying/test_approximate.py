"""Approximations of D-squared seeding beside the exact form."""

import numpy as np
import pytest
import torch

from raybal import hashing
from raybal.querying import clocks
from raybal.querying.approximate import oversampled_seeding, partitioned_seeding
from raybal.querying.factors import FactorShard
from raybal.querying.seeding import rejection_seeding
from raybal.querying.shards import LocalShards


def pool(n=6000, seed=0):
    """Items of thirty groups, most of them rare: what is drawn uniformly misses some."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(n, 5, generator=generator).softmax(1)
    q = q - torch.nn.functional.one_hot(q.argmax(1), 5)
    group = torch.rand(n, generator=generator).pow(8).mul(30).long()
    return q, torch.randn(30, 8, generator=generator).mul(3)[group] + torch.randn(n, 8, generator=generator).mul(0.3)


def shards_of(q, h, parts=1):
    keys = hashing.hash_ids(map(str, range(len(q))))
    rows = np.random.default_rng(parts).permutation(len(q))
    pieces = [torch.from_numpy(rows[i::parts]) for i in range(parts)]
    return LocalShards([FactorShard(q[p], h[p], keys[p.numpy()]) for p in pieces]), pieces


def chosen(seeding, parts=1, size=40, seed=1, **options):
    shards, pieces = shards_of(*pool(), parts)
    return [int(pieces[p.shard][p.row]) for p in seeding(shards, size, seed, **options)]


def objective(rows):
    q, h = pool()
    shard = FactorShard(q, h, hashing.hash_ids(map(str, range(len(q)))))
    shard.update(q[rows], h[rows])
    return shard.objective()


def test_parts_hold_every_item_once_also_the_last_ones():
    q, h = pool(103)
    shards, pieces = shards_of(q, h, 7)
    parts = [shards.map("part", 5, 8, number) for number in range(8)]
    held = [int(pieces[k][row]) for part in parts for k, rows in enumerate(part) for row in rows.row]
    assert sorted(held) == list(range(103))


@pytest.mark.parametrize("seeding", [oversampled_seeding, partitioned_seeding])
def test_the_objective_is_near_that_of_the_exact_form(seeding):
    exact = np.mean([objective(chosen(rejection_seeding, seed=s)) for s in range(8)])
    found = np.mean([objective(chosen(seeding, seed=s)) for s in range(8)])
    uniform = np.mean([objective(np.random.default_rng(s).choice(6000, 40, replace=False)) for s in range(8)])
    assert uniform > 1.07 * exact
    assert found < exact + 0.3 * (uniform - exact)


@pytest.mark.parametrize("seeding", [oversampled_seeding, partitioned_seeding])
@pytest.mark.parametrize("labelled", [False, True])
def test_shards_change_nothing_and_items_are_different(seeding, labelled):
    q, h = pool()
    options = {"labelled": (q[:10], h[:10])} if labelled else {}
    whole = chosen(seeding, **options)
    assert len(set(whole)) == 40
    for parts in (2, 7):
        assert chosen(seeding, parts, **options) == whole
    if not labelled:
        assert whole[0] == chosen(rejection_seeding)[0]


@pytest.mark.parametrize("seeding", [oversampled_seeding, partitioned_seeding])
def test_equal_items_are_not_chosen_twice_and_small_pools_are_exact(seeding):
    q, h = pool(50)
    q, h = q.repeat(60, 1), h.repeat(60, 1)
    shards, _ = shards_of(q, h)
    picks = seeding(shards, 100, 3)
    assert len({p.row for p in picks}) == 100
    small = [shards_of(*pool(300))[0] for _ in range(2)]
    assert [p.row for p in seeding(small[0], 40, 3)] == [p.row for p in rejection_seeding(small[1], 40, 3)]


def test_clocks_are_the_hashes_of_numpy():
    hashes = hashing.hash_ids(map(str, range(1000)))
    hashes[:2] = 0, 2**64 - 1
    tensor = clocks.to_tensor(hashes)
    for keys in [(0,), (5, 7), (-1, 2**62, 3)]:
        wanted = hashing.mix(hashes, *keys)
        found = clocks.mix(tensor, *keys)
        assert np.array_equal(found.numpy().view(np.uint64), wanted)
        assert np.array_equal(clocks.uniform(found).numpy(), hashing.uniform(wanted))
    assert np.array_equal(tensor.numpy().view(np.uint64), hashes)
