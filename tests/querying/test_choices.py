"""What strategies choose, from their own columns to the ids, against brute force."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from sklearn.datasets import make_blobs
from toy import make_classifier, make_items

from raybal import hashing
from raybal.balancing.base import Predictor
from raybal.querying import core_gcn
from raybal.querying.base import STRATEGIES, Holder, LocalCandidates, Request, Scored
from raybal.querying.scoring import item_columns

#: The first items have labels.
N, LABELLED, CLASSES, SEED = 60, 10, 6, 4
ITEMS = make_items(N, classes=CLASSES, missing=0.3)
PRESENT = torch.from_numpy(ITEMS.present)
PREDICTOR = Predictor(make_classifier(classes=CLASSES).eval())
with torch.no_grad():
    ENCODED = PREDICTOR.encode({m: torch.from_numpy(a) for m, a in ITEMS.inputs.items()}, PRESENT)
    LOGITS = PREDICTOR.logits(ENCODED.fusion_inputs, PRESENT)
    ALONE = PREDICTOR.classifier.unimodal_logits(ENCODED.embeddings)
    WEIGHTS = {m: part.weight.detach() for m, part in PREDICTOR.classifier.fusion.parts.items()}
    HEADS = {m: head.weight.detach() for m, head in PREDICTOR.classifier.unimodal_heads.items()}
Z = ENCODED.embeddings
SEEN = Scored(ENCODED, LOGITS.softmax(1), LOGITS.argmax(1), torch.full((N, 2), 0.5))


def strategy(name, **options):
    cls = STRATEGIES.get(name)
    return cls(cls.Settings(strategy=name, **options))


@torch.no_grad()
def scored(own):
    """The columns that scoring keeps of the toy items."""
    return {name: column.numpy() for name, column in item_columns(own, PREDICTOR, SEEN).items()}


def ask(own, columns, size, *, labelled=LABELLED, seed=SEED, classes=CLASSES):
    """(positions chosen among the items after the labelled ones, the query), from three holders."""
    ids = [f"item-{i:03d}" for i in range(len(next(iter(columns.values()))))]
    whole = Holder(ids, hashing.hash_ids(ids), columns)
    candidates = LocalCandidates([whole[np.arange(labelled + k, len(ids), 3)] for k in range(3)])
    known = whole[np.arange(labelled)] if labelled else None
    query = own.select(candidates, Request(size, seed, classes, known))
    return [int(i[5:]) for i in query.ids], query


def choose(name, size, **options):
    own = strategy(name, **options)
    return ask(own, scored(own), size)


def greedy(z, centres, left, size):
    """The k-centre greedy one by one, over positions."""
    chosen = []
    for _ in range(size):
        distance = torch.cdist(z[left].double(), z[[*centres, *chosen]].double()).amin(1)
        chosen.append(left[int(distance.argmax())])
    return chosen


def gradients():
    """The gradient of the loss of each item's predicted label by the weight of the linear fusion head, [n, C * D]."""
    weights = [part.weight for part in PREDICTOR.classifier.fusion.parts.values()]
    logits = PREDICTOR.logits(ENCODED.fusion_inputs, PRESENT)
    rows = [torch.autograd.grad(F.cross_entropy(x, x.argmax()), weights, retain_graph=True) for x in logits]
    return torch.stack([torch.cat(row, 1).flatten() for row in rows]).double()


@pytest.mark.parametrize("from_labelled", [False, True])
def test_badge_seeds_on_the_gradient_of_the_predicted_labels_loss(from_labelled):
    own = strategy("badge", from_labelled=from_labelled)
    columns, wanted = scored(own), gradients()
    embedding = np.einsum("nc,nd->ncd", columns["q"], columns["h"]).reshape(N, -1)
    np.testing.assert_allclose(embedding, wanted, atol=1e-6)
    chosen, query = ask(own, columns, 20)
    before = list(range(LABELLED)) if from_labelled else []
    for i, part in zip(chosen, query.parts, strict=True):
        assert part["gradient_norm"] == pytest.approx(float(wanted[i].norm()), rel=1e-4)
        nearest = torch.cdist(wanted[[i]], wanted[before]).min() if before else wanted[LABELLED:].norm(dim=1).max()
        assert part["distance"] == pytest.approx(float(nearest), rel=1e-3)
        before.append(i)


def boundary(logits, weights):
    """How far an embedding is from another class of a linear head, class by class."""
    first = int(logits.argmax())
    others = [k for k in range(len(logits)) if k != first]
    return min(float((logits[first] - logits[k]) / (weights[first] - weights[k]).norm()) for k in others)


def disagreement():
    """The mean divergence of BALD's passes from their mean, with its masks."""
    passes = []
    for number in range(10):
        dropped = {}
        for m, z in Z.items():
            generator = torch.Generator().manual_seed(hashing.digest("bald", m, number))
            dropped[m] = z * (torch.rand(z.shape[1], generator=generator) >= 0.5) * 2
        passes.append(PREDICTOR.logits(dropped, PRESENT).detach().double().softmax(1))
    p = torch.stack(passes)
    return (p * (p / p.mean(0)).log()).sum(2).mean(0).tolist()


def nearness_of_a_boundary():
    joint = [torch.cat([w * there for w, there in zip(WEIGHTS.values(), row, strict=True)], 1) for row in PRESENT]
    return [-boundary(x, w) for x, w in zip(LOGITS, joint, strict=True)]


def uncertainty_of_modalities():
    own = np.stack([entropy(x.double().softmax(1), axis=1) for x in ALONE.values()], 1)
    return [values[there].mean() for values, there in zip(own, ITEMS.present, strict=True)]


MEASURES = {
    "least_confidence": lambda: [1 - float(p.max()) for p in SEEN.probabilities],
    "deepfool": nearness_of_a_boundary,
    "bald": disagreement,
    "modality_uncertainty": uncertainty_of_modalities,
}


@pytest.mark.parametrize("name", MEASURES)
def test_items_come_in_the_order_of_the_strategys_own_measure(name):
    values = np.array(MEASURES[name]())
    chosen, query = choose(name, 15)
    assert chosen == [i for i in np.argsort(-values).tolist() if i >= LABELLED][:15]
    np.testing.assert_allclose(query.score, values[chosen], rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"unit": True}, {"features": "video"}], ids=str)
def test_coreset_is_the_greedy_one_from_the_labelled_items(options):
    parts = [F.normalize(z, dim=1) if options.get("unit") else z for z in Z.values()]
    z = parts[1] if "features" in options else torch.cat(parts, 1)
    chosen, _ = choose("coreset", 20, **options)
    assert chosen == greedy(z, range(LABELLED), list(range(LABELLED, N)), 20)


def least_margin(m, centres, left, size):
    best = ALONE[m].softmax(1).sort(1, descending=True).values
    return sorted(left, key=lambda i: float(best[i, 0] - best[i, 1]))[:size]


INNER = {
    "margin": least_margin,
    "deepfool": lambda m, centres, left, size: sorted(left, key=lambda i: boundary(ALONE[m][i], HEADS[m]))[:size],
    "coreset": lambda m, centres, left, size: greedy(Z[m], centres, left, size),
}


@pytest.mark.parametrize("inner", INNER)
def test_each_modality_fills_its_share_by_its_own_head_and_embedding(inner):
    """What the first has chosen counts as chosen for the second."""
    chosen, query = choose("by_modality", 12, inner=inner, shares={"audio": 3.0, "video": 1.0})
    expected = []
    for k, (m, size) in enumerate({"audio": 9, "video": 3}.items()):
        there = np.flatnonzero(ITEMS.present[:, k]).tolist()
        centres = [i for i in there if i < LABELLED or i in expected]
        expected += INNER[inner](m, centres, [i for i in there if i not in centres and i >= LABELLED], size)
    assert chosen == expected
    assert [reason.partition(":")[0] for reason in query.reason] == ["audio"] * 9 + ["video"] * 3


def average_linkage(z, count):
    """Joins the two clusters of the smallest mean distance between their items until so many are left."""
    distances = np.linalg.norm(z[:, None] - z, axis=2)
    clusters = [[i] for i in range(len(z))]
    while len(clusters) > count:
        pairs = itertools.combinations(range(len(clusters)), 2)
        one, other = min(pairs, key=lambda p: distances[np.ix_(clusters[p[0]], clusters[p[1]])].mean())
        clusters[one] += clusters.pop(other)
    return clusters


def test_cluster_margin_draws_from_clusters_of_average_linkage():
    """Without gaps between clusters: single linkage would leave one large one."""
    generator = np.random.default_rng(0)
    columns = {
        "z": generator.normal(size=(40, 2)).astype(np.float32),
        "closeness": generator.permutation(40).astype(np.float32),
    }
    least = np.argsort(-columns["closeness"])[:24]
    clusters = sorted((least[c].tolist() for c in average_linkage(columns["z"][least], 6)), key=len)
    cluster_of = {i: number for number, members in enumerate(clusters) for i in members}
    own, seeds = strategy("cluster_margin", factor=4.0, spread=1.0), 200
    counts = np.zeros(40)
    for seed in range(seeds):
        chosen, query = ask(own, columns, 6, labelled=0, seed=seed)
        # One of each, the smallest first.
        assert sorted(cluster_of[i] for i in chosen) == list(range(6))
        sizes = [len(clusters[cluster_of[i]]) for i in chosen]
        assert [part["cluster_size"] for part in query.parts] == sizes == sorted(sizes)
        counts[chosen] += 1
    for members in clusters:
        share = 1 / len(members)
        assert abs(counts[members] / seeds - share).max() <= 5 * np.sqrt(share * (1 - share) / seeds)


def graph_network(x, count, steps):
    """(hidden, logits) of CoreGCN's network, with its draws, on the whole matrix of the graph in float64."""
    x, eye = x.double(), torch.eye(len(x), dtype=torch.float64)
    likeness = x @ x.T - eye
    sums = likeness.sum(0)
    graph = likeness / torch.where(sums < 0, sums.clamp(max=-1), sums.clamp(min=1)) + eye
    draws = np.random.default_rng(hashing.digest("core_gcn", SEED) % 2**63)
    weights = [draws.uniform(-b, b, shape) for b, shape in ((128**-0.5, (x.shape[1], 128)), (1, (128, 1)))]
    parameters = [torch.tensor(w, requires_grad=True) for w in (*weights, np.zeros(128), np.zeros(1))]
    first, last, first_bias, last_bias = parameters
    optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=5e-4)

    def forward(dropout):
        hidden = torch.relu(graph @ x @ first + first_bias)
        return hidden, (graph @ (hidden * dropout) @ last + last_bias)[:, 0]

    for _ in range(steps):
        kept = torch.from_numpy(draws.random((len(x), 128), np.float32)) >= 0.3
        logits = forward(kept / 0.7)[1]
        optimizer.zero_grad()
        (-F.logsigmoid(logits[:count]).mean() - 1.2 * F.logsigmoid(-logits[count:]).mean()).backward()
        optimizer.step()
    return [found.detach() for found in forward(1.0)]


def test_the_graph_network_is_the_one_trained_on_the_whole_matrix():
    x = F.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=(N, 6))).float(), dim=1)
    found = core_gcn.train(x, torch.arange(N) < LABELLED, SEED, 20)
    for values, wanted in zip(found, graph_network(x, LABELLED, 20), strict=True):
        torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-5)


def test_core_gcn_is_the_greedy_one_from_the_labelled_items_in_the_space_of_each_chunk():
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(N, 6))).float()
    chosen, query = ask(strategy("core_gcn", chunk=25, steps=5), {"z": z.numpy()}, 16)
    keys = hashing.hash_ids(ITEMS.ids)
    chunk = hashing.mix(keys, SEED, -2) % np.uint64(2)
    expected, likeness = [], {}
    for number in range(2):
        part = [i for i in np.argsort(keys).tolist() if i >= LABELLED and chunk[i] == number]
        size = sum(chunk[i] == number for i in chosen)
        assert abs(size - 16 * len(part) / (N - LABELLED)) < 1
        rows = [*range(LABELLED), *part]
        hidden, logits = graph_network(F.normalize(z[rows], dim=1), LABELLED, 5)
        space = torch.cat([hidden, logits[:, None]], 1)
        expected += [rows[i] for i in greedy(space, range(LABELLED), list(range(LABELLED, len(rows))), size)]
        likeness |= dict(zip(rows, logits.sigmoid().tolist(), strict=True))
    assert chosen == expected
    assert [part["labelled_likeness"] for part in query.parts] == pytest.approx([likeness[i] for i in chosen], rel=1e-3)


@pytest.mark.parametrize("purity", [0.95, 0.7])
def test_the_share_of_probcovers_balls_that_hold_one_cluster_is_the_purity(purity):
    """Some items are near to another cluster and others far from it."""
    z, blob = make_blobs(150, 2, centers=[[0, 0], [8, 0], [0, 8]], cluster_std=1.0, random_state=0)
    z = z.astype(np.float32)
    _, query = ask(strategy("probcover", unit=False, purity=purity), {"z": z}, 5, labelled=0, classes=3)
    radius = query.parts[0]["radius"]
    distances = np.linalg.norm(z[:, None] - z, axis=2)
    pure = [len(set(blob[row < radius])) == 1 for row in distances]
    assert np.mean(pure) == pytest.approx(purity, abs=1 / len(z))
    assert query.score[0] == (distances < radius).sum(1).max()
