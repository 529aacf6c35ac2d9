"""Strategies that choose in the space of embeddings, against brute force and recorded values."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.datasets import make_blobs

from raybal import hashing
from raybal.querying import core_gcn, kcentre
from raybal.querying.base import STRATEGIES, Holder, LocalCandidates, Request
from raybal.querying.clusters import central_items, k_means
from raybal.querying.factors import FactorShard
from raybal.querying.kcentre import k_centre
from raybal.querying.probcover import pure_radius
from raybal.querying.shards import Joined, LocalShards


def shards_of(z, parts=1, seed=0):
    keys = hashing.hash_ids(map(str, range(len(z))))
    rows = np.random.default_rng(seed).permutation(len(z))
    pieces = [rows[i::parts] for i in range(parts)]
    found = [FactorShard(torch.ones(len(p), 1), torch.from_numpy(z[p]).float(), keys[p]) for p in pieces]
    return LocalShards(found), pieces


def positions(picks, pieces):
    return [int(pieces[p.shard][p.row]) for p in picks]


def held(z, ids=None, **columns):
    ids = ids or [f"item-{i:04d}" for i in range(len(z))]
    return Holder(ids, hashing.hash_ids(ids), {"z": np.asarray(z, np.float32), **columns})


def strategy(name, **options):
    cls = STRATEGIES.get(name)
    return cls(cls.Settings(strategy=name, **options))


def greedy(z, centres, size):
    """The k-centre greedy one by one."""
    distance = torch.cdist(torch.from_numpy(z).double(), torch.from_numpy(z[centres]).double()).amin(1)
    chosen = []
    for _ in range(size):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.cdist(torch.from_numpy(z), torch.from_numpy(z[chosen[-1:]])).flatten())
    return chosen


def test_k_centre_equals_the_recorded_choice(vectors):
    data = vectors("bmmal_baselines")
    z, known = data["features"], data["labeled_idx"]
    shards, pieces = shards_of(z)
    labelled = torch.ones(len(known), 1), torch.from_numpy(z[known])
    assert positions(k_centre(shards, 15, 0, labelled=labelled), pieces) == data["kcenter_sel"].tolist()


@pytest.mark.parametrize("exchange", [1, 8, 256])
@pytest.mark.parametrize("parts", [1, 3, 16])
def test_k_centre_in_exchanges_is_the_greedy_one(parts, exchange):
    z = np.random.default_rng(1).normal(size=(400, 5)).astype(np.float32)
    shards, pieces = shards_of(z, parts)
    labelled = torch.ones(3, 1), torch.from_numpy(z[:3])
    picks = k_centre(shards, 60, 0, labelled=labelled, exchange=exchange)
    assert positions(picks, pieces) == greedy(z.astype(np.float64), [0, 1, 2], 60)
    assert (np.diff([p.d2 for p in picks]) <= 1e-6).all()


@pytest.mark.parametrize("exchange", [1, 4, 256])
@pytest.mark.parametrize("parts", [1, 5])
def test_items_at_one_distance_are_centres_by_key(parts, exchange):
    """On a lattice most distances are there many times, and become equal one after the other."""
    z = np.random.default_rng(2).integers(0, 4, (300, 3)).astype(np.float32)
    z = z[np.sort(np.unique(z, axis=0, return_index=True)[1])]
    keys = hashing.hash_ids(map(str, range(len(z))))
    distance, wanted = ((z - z[0]) ** 2).sum(1), []
    for _ in range(20):
        wanted.append(max(range(len(z)), key=lambda i: (distance[i], -int(keys[i]))))
        distance = np.minimum(distance, ((z - z[wanted[-1]]) ** 2).sum(1))
    shards, pieces = shards_of(z, parts)
    labelled = torch.ones(1, 1), torch.from_numpy(z[:1])
    assert positions(k_centre(shards, 20, 0, labelled=labelled, exchange=exchange), pieces) == wanted


def test_an_item_elsewhere_at_the_same_distance_is_not_passed_over():
    """Of items at one distance the smaller key comes first, also when it is not among those looked at."""
    z = np.concatenate([np.eye(12) * 3, np.zeros((1, 12))]).astype(np.float32)
    for parts in (1, 4):
        shards, pieces = shards_of(z, parts)
        labelled = torch.ones(1, 1), torch.zeros(1, 12)
        picks = k_centre(shards, 12, 0, labelled=labelled, exchange=3)
        keys = hashing.hash_ids(map(str, range(13)))
        assert positions(picks, pieces) == sorted(range(12), key=lambda i: int(keys[i]))


@pytest.mark.parametrize("parts", [2, 7, 16])
def test_of_equal_items_close_to_others_the_smaller_key_is_chosen_on_any_shards(parts):
    """Tight groups of items that are there twice each."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(20, 1, 24)) + 0.004 * generator.normal(size=(20, 15, 24))
    z = np.tile(z.reshape(300, 24), (2, 1)).astype(np.float32)
    chosen = []
    for count in (1, parts):
        shards, pieces = shards_of(z, count, seed=count)
        centres = positions(k_centre(shards, 200, 0), pieces)
        shards, pieces = shards_of(z, count, seed=count)
        clusters = k_means(shards, 100, 0)
        chosen.append((centres, positions(central_items(shards, len(clusters.sizes)), pieces)))
    assert chosen[0] == chosen[1]
    keys = hashing.hash_ids(map(str, range(600)))
    # The first centre is drawn by hash.
    assert all(keys[i] < keys[(i + 300) % 600] for i in chosen[0][0][1:] + chosen[0][1])


def test_one_exchange_serves_several_picks(monkeypatch):
    z = np.random.default_rng(1).normal(size=(2000, 5)).astype(np.float32)
    shards, _ = shards_of(z)
    walks = []
    walk = kcentre.walk
    monkeypatch.setattr(kcentre, "walk", lambda *a: walks.append(0) or walk(*a))
    assert len(k_centre(shards, 200, 0)) == 200
    assert len(walks) < 60


@pytest.mark.parametrize("parts", [1, 4, 16])
def test_k_means_is_lloyds_from_the_same_start_on_any_shards(parts):
    z, _ = make_blobs(600, 7, centers=5, random_state=0)
    z = z.astype(np.float32)
    shards, pieces = shards_of(z, parts)
    found = k_means(shards, 5, seed=3, iterations=50)
    start = found.centres.numpy()
    reference = SklearnKMeans(5, init=start, n_init=1, max_iter=1).fit(z.astype(np.float64))
    # A fixed point of Lloyd's iterations.
    np.testing.assert_allclose(reference.cluster_centers_, start, atol=1e-4)
    assert found.sizes.tolist() == np.bincount(reference.labels_, minlength=5).tolist()
    for shard, piece in zip(shards.shards, pieces, strict=True):
        assert shard.nearest.tolist() == reference.labels_[piece].tolist()
    whole, _ = shards_of(z, 1)
    assert torch.equal(k_means(whole, 5, seed=3, iterations=50).centres, found.centres)


def test_k_means_chooses_one_item_of_each_cluster():
    """The released code takes two of each of the first half of the clusters."""
    z, blob = make_blobs(300, 4, centers=10, cluster_std=0.05, random_state=1)
    query = strategy("kmeans", unit=False).select(LocalCandidates([held(z)]), Request(10, 0))
    chosen = [int(i[5:]) for i in query.ids]
    assert sorted(blob[chosen]) == list(range(10))
    assert query.score == [30.0] * 10
    for i in chosen:
        own = z[blob == blob[i]]
        distances = np.linalg.norm(own - own.mean(0), axis=1)
        assert np.linalg.norm(z[i] - own.mean(0)) == pytest.approx(distances.min(), rel=1e-4)


def test_typiclust_goes_to_clusters_without_labels_and_to_their_middle():
    z, blob = make_blobs([80, 60, 40, 20], 3, centers=np.eye(4, 3) * 20, cluster_std=0.5, random_state=2)
    known = [int(np.flatnonzero(blob == 0)[0])]
    ids = [f"item-{i:04d}" for i in range(len(z))]
    labelled = held(z[known], [ids[i] for i in known])
    left = [i for i in range(len(z)) if i not in known]
    candidates = LocalCandidates([held(z[left], [ids[i] for i in left])])
    query = strategy("typiclust", unit=False).select(candidates, Request(3, 0, labelled=labelled))
    chosen = [int(i[5:]) for i in query.ids]
    # Cluster 0 has a label; the others come by size.
    assert blob[chosen].tolist() == [1, 2, 3]
    for i in chosen:
        own = z[blob == blob[i]]
        near = np.sort(np.linalg.norm(own - z[i], axis=1))[1 : 1 + min(20, len(own) // 2)].mean()
        every = [np.sort(np.linalg.norm(own - x, axis=1))[1 : 1 + min(20, len(own) // 2)].mean() for x in own]
        assert near == pytest.approx(min(every), rel=1e-4)


def test_typiclust_leaves_outliers_for_last_and_then_goes_to_the_fewest_labels():
    """Those of five items and fewer come when nothing else is left."""
    sizes = [5, 12, 9, 1]
    z = np.concatenate(
        [20 * np.eye(4)[i] + 0.1 * np.random.default_rng(i).normal(size=(n, 4)) for i, n in enumerate(sizes)]
    )
    blob = np.repeat(range(4), sizes)
    query = strategy("typiclust", unit=False, clusters=4).select(LocalCandidates([held(z)]), Request(27, 0))
    assert blob[[int(i[5:]) for i in query.ids]].tolist() == [1, 2] * 9 + [1] * 3 + [0, 3] + [0] * 4
    assert query.score[query.ids.index("item-0026")] == 0.0


def test_probcover_is_the_greedy_cover():
    z = np.random.default_rng(3).uniform(size=(200, 2)).astype(np.float32)
    near = np.linalg.norm(z[:, None] - z[None], axis=2) < 0.15
    labelled = held(z[:5])
    uncovered = ~near[:5].any(0)
    counts = []
    for _ in range(12):
        gains = (near[5:] & uncovered).sum(1)
        counts.append(int(gains.max()))
        query_item = int(gains.argmax())
        uncovered &= ~near[5 + query_item]
    candidates = LocalCandidates([held(z[5:], [f"item-{i:04d}" for i in range(5, 200)])])
    query = strategy("probcover", unit=False, radius=0.15).select(candidates, Request(12, 0, labelled=labelled))
    # Among equals the order may differ; the first gain is the same for all.
    assert query.score[0] == counts[0]
    left = ~near[:5].any(0)
    left[:5] = False
    for i, gain in zip(query.ids, query.score, strict=True):
        gains = (near[5:] & left).sum(1)
        assert gain == gains.max() == gains[int(i[5:]) - 5]
        left &= ~near[int(i[5:])]


def test_the_radius_keeps_balls_pure():
    z, _ = make_blobs(400, 2, centers=[[0, 0], [10, 0], [0, 10]], cluster_std=0.5, random_state=0)
    radius = pure_radius(torch.from_numpy(z).float(), 3, 0.95, 0)
    assert 5 < radius < 10


def test_the_radius_where_there_is_nothing_to_tell_apart():
    z = torch.tensor([[0.0], [3.0], [10.0]])
    # Each item a cluster: balls that hold nothing else.
    assert 0 < pure_radius(z, 3, 0.95, 0) <= 3.5
    # One cluster: all of it.
    assert pure_radius(torch.zeros(9, 2), 1, 0.95, 0) == 1e-6
    assert pure_radius(z, 1, 0.95, 0) == 20
    assert pure_radius(z[:1], 3, 0.95, 0) == 1e-6


def test_the_graph_and_the_loss_equal_the_recorded_ones(vectors):
    data = vectors("bmmal_baselines")
    x = torch.from_numpy(data["gcn_xnorm"]).double()
    product = core_gcn.Graph(x, least=0.0).times(torch.eye(len(x), dtype=torch.float64)).numpy()
    # The recorded matrix divides by column sums in float32, some of which are all but zero.
    sums = np.abs(data["gcn_xnorm"].astype(np.float64) @ data["gcn_xnorm"].sum(0) - 1)
    np.testing.assert_allclose(product * sums, data["gcn_adj"] * sums, atol=1e-4)
    known = torch.zeros(len(x), dtype=torch.bool)
    known[data["labeled_idx"]] = True
    loss = core_gcn.discriminator_loss(torch.from_numpy(data["gcn_scores"])[:, 0], known)
    assert float(loss) == pytest.approx(float(data["gcn_loss"]), rel=1e-5)


def test_the_graph_network_tells_what_is_far_from_labelled_items():
    z, blob = make_blobs(200, 6, centers=2, cluster_std=0.3, random_state=4)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    x = torch.from_numpy(z).float()
    known = torch.from_numpy(blob == 0) & (torch.arange(200) % 2 == 0)
    scores = core_gcn.train(x, known, 0, 200)[1].sigmoid()
    # Items beside labelled ones look more labelled than those of the other blob.
    assert scores[blob == 0].mean() > scores[blob == 1].mean() + 0.1


def test_cluster_margin_goes_round_the_clusters_of_the_least_certain():
    z, blob = make_blobs([50, 30, 15, 5], 3, centers=np.eye(4, 3) * 20, cluster_std=0.5, random_state=2)
    closeness = np.random.default_rng(0).uniform(size=100).astype(np.float32)
    candidates = LocalCandidates([held(z, closeness=closeness)])
    query = strategy("cluster_margin", factor=5.0, spread=0.4).select(candidates, Request(10, 0))
    chosen = [int(i[5:]) for i in query.ids]
    least = np.argsort(-closeness)[:50]
    assert set(chosen) <= set(least.tolist())
    groups = fcluster(linkage(z[least], "average"), 4, "maxclust")
    assert len(set(groups)) == 4
    sizes = np.bincount(blob[least], minlength=4)
    # Smallest first, each in turn.
    assert blob[chosen[:4]].tolist() == np.argsort(sizes, kind="stable").tolist()


def test_joined_shards_answer_in_order():
    z = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    one, _ = shards_of(z[:20], 3)
    other, _ = shards_of(z[20:], 2)
    both = Joined([one, other])
    assert len(both) == 5
    assert both.map("__len__") == [7, 7, 6, 5, 5]
    rows = [(torch.tensor([i]),) for i in range(5)]
    assert [r.row.tolist() for r in both.map("rows", each=rows)] == [[0], [1], [2], [3], [4]]
