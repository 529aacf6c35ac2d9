"""How balanced a query is, and quotas."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import entropy

from raybal import hashing
from raybal.errors import RaybalError
from raybal.querying.balance import balance_of, select
from raybal.querying.base import Holder, LocalCandidates, Query, QuerySettings, QueryStrategy, QuotaSettings, Request
from raybal.querying.explain import describe_items, summarise_pool

N = 200
RANDOM = np.random.default_rng(0)
SHARE = RANDOM.beta(2, 1, N)
COLUMNS = {
    "contribution": np.stack([SHARE, 1 - SHARE], 1).astype(np.float32),
    "predicted": RANDOM.choice(5, N, p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.int32),
    "confidence": RANDOM.random(N).astype(np.float32),
}
IDS = [f"item-{i:03d}" for i in range(N)]


class ByShare(QueryStrategy):
    """Those that the first modality decides most: as unbalanced as can be."""

    asked: list[Request]

    def select(self, candidates, request):
        self.asked.append(request)
        found = [pair for part in candidates.map(_by_share) for pair in part]
        found = sorted(found, reverse=True)[: request.size]
        return Query([i for _, i in found], [v for v, _ in found], ["share"] * len(found), [{"v": v} for v, _ in found])


def _by_share(holder):
    return list(zip(holder.columns["contribution"][:, 0].tolist(), holder.ids, strict=True))


def held(parts=1):
    rows = np.random.default_rng(parts).permutation(N)
    return LocalCandidates(
        [
            Holder(
                [IDS[r] for r in piece],
                hashing.hash_ids([IDS[r] for r in piece]),
                {name: values[piece] for name, values in COLUMNS.items()},
            )
            for piece in np.array_split(rows, parts)
        ]
    )


def choose(parts=1, size=40, labelled=None, **quota):
    strategy = ByShare(QuerySettings(strategy="by share", quota=QuotaSettings(**quota)))
    strategy.asked = []
    return select(strategy, held(parts), Request(size, 1, labelled=labelled)), strategy.asked


def numbers(query):
    candidates = held()
    return balance_of(describe_items(candidates, query.ids), summarise_pool(candidates))


def test_balance_is_measured_beside_the_pool():
    query, _ = choose()
    rows = [int(i[5:]) for i in query.ids]
    found = numbers(query)
    np.testing.assert_allclose(
        found["contribution"], COLUMNS["contribution"][rows].mean(0) - COLUMNS["contribution"].mean(0), rtol=1e-5
    )
    assert found["dominated"] == [1.0, 0.0]
    counts = np.bincount(COLUMNS["predicted"][rows])
    assert found["class_entropy"] == pytest.approx(entropy(counts))
    assert found["pool_class_entropy"] == pytest.approx(entropy(np.bincount(COLUMNS["predicted"])))
    assert balance_of({}, {}) == {}


def test_without_a_quota_the_strategy_chooses_once():
    query, asked = choose()
    assert len(asked) == 1
    assert query.ids == [IDS[i] for i in np.argsort(-SHARE)[:40]]


@pytest.mark.parametrize(
    ("quota", "kept"),
    [
        ({"dominated": 0.6}, lambda b, q: max(b["dominated"]) <= 0.6),
        ({"predicted": 0.25}, lambda b, q: np.bincount(q).max() <= 10),
        ({"contribution": 0.02}, lambda b, q: np.abs(b["contribution"]).max() <= 0.02 + 1e-6),
        (
            {"dominated": 0.7, "predicted": 0.4, "contribution": 0.1},
            lambda b, q: max(b["dominated"]) <= 0.7 and np.abs(b["contribution"]).max() <= 0.1 + 1e-6,
        ),
    ],
)
def test_quotas_are_kept_whatever_the_shards(quota, kept):
    plain, _ = choose()
    assert not kept(numbers(plain), COLUMNS["predicted"][[int(i[5:]) for i in plain.ids]])
    query, asked = choose(**quota)
    assert len(set(query.ids)) == len(query.parts) == 40
    assert kept(numbers(query), COLUMNS["predicted"][[int(i[5:]) for i in query.ids]])
    assert choose(parts=7, **quota)[0].ids == query.ids
    # What was chosen before is said to the strategy.
    assert [len(r.chosen.ids) if r.chosen else 0 for r in asked[1:]] == [40 - r.size for r in asked[1:]]


@pytest.mark.parametrize(("share", "size"), [(0.29, 50), (0.29, 100), (0.25, 10), (0.1, 5)])
def test_a_share_of_a_query_is_whole_items_and_one_at_least(share, size):
    """0.29 of 50 is 14.5 items, and 0.29 * 100 is below 29 in floating point: counted in fractions, one by one."""
    most, counts, wanted = max(1, math.floor(Fraction(str(share)) * size)), Counter(), []
    for row in np.argsort(-SHARE):
        if len(wanted) < size and counts[k := int(COLUMNS["predicted"][row])] < most:
            counts[k] += 1
            wanted.append(IDS[row])
    assert choose(size=size, predicted=share)[0].ids == wanted
    assert max(counts.values()) == most


def test_every_choice_of_a_query_has_its_own_seed_and_the_same_labelled_items():
    """A strategy that draws must not repeat its draw among the items that are left."""
    labelled = held().holders[0][np.arange(5)]
    query, asked = choose(labelled=labelled, predicted=0.25, contribution=0.02)
    assert len(asked) > 2
    assert asked[0].seed == 1
    assert len({r.seed for r in asked}) == len(asked)
    assert all(r.labelled is labelled and r.classes == asked[0].classes for r in asked)
    again, repeated = choose(labelled=labelled, predicted=0.25, contribution=0.02)
    assert again.ids == query.ids
    assert [r.seed for r in repeated] == [r.seed for r in asked]


def test_a_quota_that_cannot_be_kept_is_filled_up_and_said(caplog):
    with caplog.at_level("WARNING"):
        query, _ = choose(size=N, dominated=0.5)
    assert sorted(query.ids) == IDS
    assert caplog.messages == [f"query.quota.dominated: 0.500 was not kept; it is {(SHARE > 0.5).mean():.3f}"]


def test_of_limits_that_cannot_be_kept_together_one_is_given_up(caplog):
    """So many items of one modality's have been taken that all others pull the mean contribution away."""
    with caplog.at_level("WARNING"):
        query, _ = choose(dominated=0.6, predicted=0.5, contribution=0.01)
    found, rows = numbers(query), [int(i[5:]) for i in query.ids]
    assert max(found["dominated"]) <= 0.6
    assert np.bincount(COLUMNS["predicted"][rows]).max() <= 20
    missed = np.abs(found["contribution"]).max()
    assert missed > 0.01
    assert caplog.messages == [f"query.quota.contribution: 0.010 was not kept; it is {missed:.3f}"]


def test_the_limits_that_block_nothing_stay_when_one_is_given_up(caplog):
    """Five classes of a tenth each are half a query; what fills it up keeps to both other limits, which bind."""
    with caplog.at_level("WARNING"):
        query, _ = choose(size=60, predicted=0.1, dominated=0.8, contribution=0.1)
    found, counts = numbers(query), np.bincount(COLUMNS["predicted"][[int(i[5:]) for i in query.ids]])
    assert caplog.messages == [f"query.quota.predicted: 0.100 was not kept; it is {counts.max() / 60:.3f}"]
    assert max(found["dominated"]) <= 0.8
    assert np.abs(found["contribution"]).max() <= 0.1


def test_a_contribution_that_is_not_finite_is_named():
    """A single one would make every limit to contributions pass for kept or for broken."""
    candidates = held(3)
    holder = candidates.holders[1]
    holder.columns["contribution"] = holder.columns["contribution"].copy()
    holder.columns["contribution"][4, 1] = np.nan
    strategy = ByShare(QuerySettings(strategy="by share", quota=QuotaSettings(contribution=0.1)))
    with pytest.raises(RaybalError, match=f"'contribution' of item {holder.ids[4]} is not finite"):
        select(strategy, candidates, Request(40, 1))
