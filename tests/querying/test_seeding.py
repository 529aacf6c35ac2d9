"""D-squared seeding: recorded sequences, its law, and independence of shards and order."""

import itertools
import multiprocessing
import resource
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from raybal import hashing
from raybal.errors import RaybalError
from raybal.querying import factors as shard_of_factors
from raybal.querying import seeding
from raybal.querying.distances import exact_distances, reproducible_product, squared_norms
from raybal.querying.factors import FactorShard
from raybal.querying.seeding import LocalShards, d2_seeding, rejection_seeding


def factors(n, classes=4, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(n, classes, generator=generator).softmax(1)
    q = q - torch.nn.functional.one_hot(q.argmax(1), classes)
    return q, torch.rand(n, size, generator=generator)


def dense(q, h):
    return torch.einsum("nc,nd->ncd", q.double(), h.double()).flatten(1)


@pytest.mark.parametrize("file", ["bmmal_small", "bmmal_concat"])
@pytest.mark.parametrize("strategy", ["bmmal", "badge"])
def test_sequential_mode_repeats_the_authors_picks(vectors, file, strategy):
    data = vectors(file)
    scale = [data["scale1"], data["scale2"]] if strategy == "bmmal" else [1, 1]
    h = torch.from_numpy(np.concatenate([data["z1"] * scale[0], data["z2"] * scale[1]], 1))
    p = data["prob_full"]
    q = torch.from_numpy(p - np.eye(p.shape[1])[p.argmax(1)])
    picks = d2_seeding(q, h, int(data["K"]), uniforms=data[f"uniforms_{strategy}"])
    assert picks.tolist() == data[f"{strategy}_sel"].tolist()


def test_distances_equal_the_dense_embeddings():
    q, h = factors(40)
    q[7], h[7] = q[3], h[3]
    d2 = exact_distances(q, h, q, h)
    np.testing.assert_allclose(d2, torch.cdist(dense(q, h), dense(q, h)).numpy() ** 2, atol=1e-12)
    assert d2[3, 7] == 0.0
    assert (np.diag(d2) == 0).all()


def test_updates_keep_the_distance_to_the_nearest_centre():
    q, h = factors(5000)
    shard = FactorShard(q, h, hashing.hash_ids(map(str, range(5000))))
    shard.update(q[:3], h[:3], [0, 1, 2], [0, 1, 2])
    shard.update(q[10:40], h[10:40], range(10, 40), range(30))
    centres = torch.cat([torch.arange(3), torch.arange(10, 40)])
    expected = torch.cdist(dense(q, h), dense(q, h)[centres]).numpy().min(1) ** 2
    np.testing.assert_allclose(shard.d2, expected, rtol=2e-4, atol=1e-9)
    np.testing.assert_array_equal(shard.nearest, torch.cdist(dense(q, h), dense(q, h)[centres]).argmin(1))
    assert (shard.d2[centres] == 0).all()


@pytest.mark.parametrize("count", range(1, 18))
def test_an_update_gives_a_row_the_same_wherever_it_lies(count):
    """To the bit, for any number of centres: a query must not depend on how items lie in shards."""
    generator = torch.Generator().manual_seed(count)
    q, h = factors(700, classes=31, size=512)
    centres = torch.randperm(700, generator=generator)[:count]
    keys = hashing.hash_ids(map(str, range(700)))
    whole = FactorShard(q, h, keys)
    whole.update(q[centres], h[centres])
    order = torch.randperm(700, generator=generator)
    for rows in torch.split(order, [1, 2, 3, 50, 644]):
        part = FactorShard(q[rows], h[rows], keys[rows.numpy()])
        part.update(q[centres], h[centres])
        np.testing.assert_array_equal(part.d2, whole.d2[rows.numpy()])


@pytest.mark.parametrize("classes", [1, 31])
def test_what_is_close_to_a_centre_is_the_same_wherever_it_lies(classes):
    """There distances are taken in float64, whose products round by where in a tile a row lies."""
    generator = torch.Generator().manual_seed(0)
    q, h = factors(600, classes=classes, size=48)
    q = q if classes > 1 else torch.ones(600, 1)
    near = torch.arange(600) % 5
    q, h = q[near], h[near] * (1 + 1e-3 * torch.rand(600, 48, generator=generator))
    # Each item twice.
    q[300:], h[300:] = q[:300], h[:300]
    keys = hashing.hash_ids(map(str, range(600)))
    whole = FactorShard(q, h, keys)
    for some in torch.arange(0, 300, 3).split(7):
        whole.update(q[some], h[some])
    np.testing.assert_array_equal(whole.d2[:300], whole.d2[300:])
    assert (whole.d2 < shard_of_factors.NOISE * whole.norm).all()
    for rows in torch.split(torch.randperm(600, generator=generator), [1, 2, 50, 547]):
        part = FactorShard(q[rows], h[rows], keys[rows.numpy()])
        for some in torch.arange(0, 300, 3).split(7):
            part.update(q[some], h[some])
        np.testing.assert_array_equal(part.d2, whole.d2[rows.numpy()])


def test_reproducible_products_are_those_of_float64():
    generator = torch.Generator().manual_seed(0)
    # From 1e-9 to 1e9, zeros, and a row of nothing else.
    x = torch.randn(50, 300, generator=generator) * 10 ** (18 * torch.rand(50, 1, generator=generator) - 9)
    y = torch.randn(20, 300, generator=generator)
    x[3], y[:, ::2] = 0.0, 0.0
    size = x.double().norm(dim=1)[:, None] * y.double().norm(dim=1)
    assert ((reproducible_product(x, y) - x.double() @ y.double().T).abs() <= 1e-14 * size).all()


def probabilities_of_triples(q, h):
    """Exact probabilities of picks 2 to 4 of sequential seeding that starts from the largest norm."""
    d2 = exact_distances(q, h, q, h).numpy()
    first = int(squared_norms(q, h).argmax())
    found = {}
    for triple in itertools.permutations([i for i in range(len(q)) if i != first], 3):
        weight, chosen = 1.0, [first]
        for pick in triple:
            nearest = d2[:, chosen].min(1)
            weight *= nearest[pick] / nearest.sum()
            chosen.append(pick)
        if weight > 0:
            found[triple] = weight
    return first, found


def repeats_dropped(keys, d2_start, accept, distances, wanted, walk=seeding.walk):
    _, first = np.unique(keys, return_index=True)
    kept = np.sort(first)
    found = walk(keys[kept], d2_start[kept], accept[kept], distances[np.ix_(kept, kept)], wanted)
    return [(int(kept[i]), d2) for i, d2 in found]


def without_replacement(base, time, rate, count):
    order = np.argsort(time)
    return order, time[order], np.zeros(len(order), np.int64)


#: Samplers that are wrong on purpose: (module, function) and what takes its place.
WRONG = {"repeats_dropped": (seeding, "walk"), "without_replacement": (shard_of_factors, "_arrivals")}


def draw_part(q, h, seeds, proposals, wrong):
    torch.set_num_threads(1)
    # Tens of thousands of runs over eight items need no large tiles.
    shard_of_factors.TILE["cpu"] = 16
    if wrong:
        setattr(*WRONG[wrong], globals()[wrong])
    counts = Counter()
    keys = hashing.hash_ids(map(str, range(len(q))))
    for seed in seeds:
        picks = rejection_seeding(LocalShards([FactorShard(q, h, keys)]), 4, seed, proposals=proposals)
        counts[tuple(p.row for p in picks[1:])] += 1
    return counts


def draw(q, h, runs, wrong=None):
    """Returns how often each triple of picks 2 to 4 came up, drawn in processes of their own."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        parts = [processes.submit(draw_part, q, h, range(i, runs, 2), 2 * len(q), wrong) for i in range(2)]
        return sum((part.result() for part in parts), Counter())


def p_value(counts, expected, runs):
    if set(counts) - set(expected):
        return 0.0
    # Rare triples together, so that every cell of the test expects at least 5.
    cells = [(counts.get(t, 0), runs * p) for t, p in expected.items()]
    small = [c for c in cells if c[1] < 5]
    cells = [c for c in cells if c[1] >= 5] + ([tuple(map(sum, zip(*small, strict=True)))] if small else [])
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    return float(chi2.sf(statistic, len(cells) - 1))


@pytest.fixture(scope="module")
def small_pool():
    q, h = factors(8, seed=3)
    q[6], h[6] = q[2], h[2]
    return q, h


def test_rejection_has_the_law_of_sequential_seeding(small_pool):
    """The joint distribution of three picks on a pool with an exact duplicate, against exact probabilities."""
    runs = 40_000
    _, expected = probabilities_of_triples(*small_pool)
    assert p_value(draw(*small_pool, runs), expected, runs) > 1e-3


@pytest.mark.parametrize("wrong", WRONG)
def test_the_law_test_notices_a_wrong_sampler(small_pool, wrong):
    runs = 4000  # a tenth tells them already
    _, expected = probabilities_of_triples(*small_pool)
    assert p_value(draw(*small_pool, runs, wrong), expected, runs) < 1e-6


def picks_over(q, h, ids, parts, size, seed=1, proposals=32, labelled=None):
    shards = [FactorShard(q[rows], h[rows], hashing.hash_ids([ids[r] for r in rows])) for rows in parts]
    picks = rejection_seeding(LocalShards(shards), size, seed, proposals=proposals, labelled=labelled)
    return [ids[parts[p.shard][p.row]] for p in picks]


@pytest.mark.parametrize("count", [2, 7, 16])
def test_shards_and_order_change_nothing(count):
    q, h = factors(700, classes=5, size=24)
    # Exact duplicates in different shards.
    q[500:520], h[500:520] = q[:20], h[:20]
    ids = [f"clip-{i}" for i in range(700)]
    whole = picks_over(q, h, ids, [np.arange(700)], 60)
    order = np.random.default_rng(count).permutation(700)
    assert picks_over(q, h, ids, np.array_split(order, count), 60) == whole
    assert len(set(whole)) == 60


def test_labelled_centres_count_from_the_start():
    q, h = factors(300)
    ids = [str(i) for i in range(300)]
    labelled = (q[:50], h[:50])
    picks = picks_over(q, h, ids, [np.arange(300)], 40, labelled=labelled)
    assert not set(picks) & set(ids[:50])
    assert picks == picks_over(q, h, ids, np.array_split(np.arange(300), 3), 40, labelled=labelled)


def test_the_objective_equals_sequential_seedings():
    """On a large pool of groups most of which are rare; what draws uniformly misses some, and is told apart."""
    n, size, runs = 50_000, 40, 24
    generator, random = torch.Generator().manual_seed(0), np.random.default_rng(0)
    group = torch.rand(n, generator=generator).pow(6).mul(30).long()
    q = torch.randn(30, 6, generator=generator)[group] + 0.05 * torch.randn(n, 6, generator=generator)
    q = q - q.mean(1, keepdim=True)
    h = 3 * torch.randn(30, 16, generator=generator)[group] + 0.3 * torch.randn(n, 16, generator=generator)

    def objective(picks):
        return float(exact_distances(q, h, q[picks], h[picks]).amin(1).sum())

    def apart(values, others):
        """By how many standard errors."""
        return abs(np.mean(values) - np.mean(others)) / np.sqrt((np.var(values) + np.var(others)) / (runs - 1))

    rejection = [objective(d2_seeding(q, h, size, seed=s)) for s in range(runs)]
    sequential = [objective(d2_seeding(q, h, size, uniforms=random.random(4 * size))) for _ in range(runs)]
    uniform = [objective(random.choice(n, size, replace=False)) for _ in range(runs)]
    assert apart(rejection, sequential) < 3
    assert apart(uniform, sequential) > 10


def test_when_all_mass_is_gone_the_rest_follows_at_random():
    q, h = factors(3)
    q, h = q.repeat(10, 1), h.repeat(10, 1)
    picks = d2_seeding(q, h, 12, seed=0)
    assert len(set(picks.tolist())) == 12
    assert {p % 3 for p in picks[:3].tolist()} == {0, 1, 2}
    assert d2_seeding(q, h, 12, seed=0).tolist() == picks.tolist()
    assert d2_seeding(q, h, 12, seed=5).tolist()[3:] != picks.tolist()[3:]
    assert sorted(d2_seeding(q, h, 100, seed=0).tolist()) == list(range(30))
    assert sorted(d2_seeding(q, h, 30, uniforms=np.random.default_rng(0).random(200)).tolist()) == list(range(30))


@pytest.mark.parametrize("labelled", [False, True])
def test_sequential_seeding_gives_equals_of_a_centre_no_mass(labelled):
    """Float32 distances of equal embeddings are noise above zero, which draws would follow once all else is chosen;
    without it they are uniform."""
    q, h = factors(3, classes=31, size=512)
    centres = (q, h) if labelled else None
    q, h = q.repeat(10, 1), h.repeat(10, 1)
    size, runs = 1 if labelled else 4, 400
    last = np.zeros(30)
    for seed in range(runs):
        uniforms = np.random.default_rng(seed).random(20)
        last[d2_seeding(q, h, size, uniforms=uniforms, labelled=centres)[-1]] += 1
    # Chosen before: the item of largest norm in every run, one of ten equal ones of each other kind in some.
    expected = np.full(30, runs / 30)
    if not labelled:
        expected = np.where(np.arange(30) % 3 == int(last.argmin()) % 3, runs / 27, runs * 0.9 / 27)
        expected[int(last.argmin())] = 0
    cells = expected > 0
    statistic = ((last - expected)[cells] ** 2 / expected[cells]).sum()
    assert chi2.sf(statistic, cells.sum() - 1) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sequential_seeding_does_not_calculate_in_half_precision(dtype):
    q, h = (x.to(dtype) for x in factors(500, classes=8, size=64))
    uniforms = np.random.default_rng(0).random(100)
    halves = d2_seeding(q, h, 30, uniforms=uniforms)
    assert halves.tolist() == d2_seeding(q.float(), h.float(), 30, uniforms=uniforms).tolist()


def test_what_is_left_at_random_keeps_its_norm():
    q, h = factors(3)
    q, h = q.repeat(4, 1), h.repeat(4, 1)
    parts = [[0, 1, 5], [2, 3, 4]]
    shards = LocalShards([FactorShard(q[rows], h[rows], hashing.hash_ids(map(str, rows))) for rows in parts])
    picks = rejection_seeding(shards, 6, 0)
    assert [p.d2 > 0 for p in picks] == [True] * 3 + [False] * 3
    for pick in picks:
        assert pick.norm == shards.shards[pick.shard].norm[pick.row] > 0


def test_no_shard_gives_no_pick():
    assert rejection_seeding(LocalShards([]), 5, 0) == []


def test_all_zero_embeddings_are_chosen_too():
    assert sorted(d2_seeding(torch.zeros(5, 3), torch.ones(5, 2), 5, seed=0).tolist()) == [0, 1, 2, 3, 4]


def test_bad_input_is_named():
    q, h = factors(5)
    with pytest.raises(RaybalError, match="either a seed or uniforms"):
        d2_seeding(q, h, 2)
    with pytest.raises(RaybalError, match="more than the 1 uniforms"):
        d2_seeding(q, h, 4, uniforms=np.array([0.5]))
    h[3, 0] = float("nan")
    for how in ({"seed": 0}, {"uniforms": np.full(9, 0.5)}):
        with pytest.raises(RaybalError, match="row 3"):
            d2_seeding(q, h, 2, **how)
    h[3, 0] = float("inf")
    for how in ({"seed": 0}, {"uniforms": np.full(9, 0.5)}):
        with pytest.raises(RaybalError, match="row 3"):
            d2_seeding(q, h, 2, **how)
    good = factors(5)
    with pytest.raises(RaybalError, match="row 3"):
        d2_seeding(*good, 2, uniforms=np.full(9, 0.5), labelled=(q, h))


def test_nothing_asked_or_nothing_there():
    q, h = factors(5)
    assert len(d2_seeding(q, h, 0, seed=0)) == 0
    assert len(d2_seeding(q[:0], h[:0], 3, seed=0)) == 0


def test_a_shard_takes_little_memory_beside_its_factors():
    """Blocks of float64 that are given back must not stay behind in pieces."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    q, h = torch.ones(200_000, 31, dtype=torch.float16), torch.ones(200_000, 512, dtype=torch.float16)
    before = resident()
    shard = FactorShard(q, h, np.arange(200_000, dtype=np.uint64))
    shard.update(q[:200], h[:200])
    # In float64 the factors are 870 MB.
    assert resident() - before < 150e6
