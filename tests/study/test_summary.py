"""What is said of a study when its loops have ended."""

from __future__ import annotations

import csv
import io
import itertools

import numpy as np
import pytest
from scipy import stats

from raybal.study.config import StudyConfig
from raybal.study.summary import area, summarise


def curve(*accuracy, start=20):
    seconds = {"score": 1.0, "select": 0.5, "train": 9.0}
    return [
        {
            "labels": start * (k + 1),
            "accuracy": a,
            "heads": {"easy": a, "hard": a},
            "balance": {"contribution": [0.1 * k, -0.1 * k], "class_entropy": 1.0 + k} if k else {},
            "seconds": seconds,
        }
        for k, a in enumerate(accuracy)
    ]


def test_areas_are_means_over_labels_and_compared_by_seed():
    assert area(curve(0.2, 0.4, 0.6)) == pytest.approx(0.4)
    assert area(curve(0.2, 0.6, 0.6)) == pytest.approx((0.4 + 0.6) / 2)
    assert area(curve(0.3)) == 0.3
    uneven = curve(0.0, 1.0)
    uneven[1]["labels"] = 100
    assert area([*uneven, {**uneven[1], "labels": 400}]) == pytest.approx((80 * 0.5 + 300) / 380)

    generator = np.random.default_rng(0)
    config = StudyConfig(strategies=["random", "margin", "badge"], methods=["joint"], seeds=5)
    curves = {
        ("joint", s, seed): curve(*(0.3 + 0.1 * k + 0.02 * i + 0.01 * generator.normal() for k in range(4)))
        for i, s in enumerate(config.strategies)
        for seed in range(5)
    }
    summary = summarise(curves, config)
    rows = {r.strategy: r for r in summary.rows["joint"]}
    areas = {s: [area(curves["joint", s, seed]) for seed in range(5)] for s in config.strategies}
    assert [r.strategy for r in summary.rows["joint"]] == sorted(areas, key=lambda s: -np.mean(areas[s]))
    ps = {s: stats.ttest_rel(areas[s], areas["random"]).pvalue for s in ("margin", "badge")}
    smallest, largest = sorted(ps, key=ps.__getitem__)
    assert rows[smallest].against.adjusted == pytest.approx(2 * ps[smallest])
    assert rows[largest].against.adjusted == pytest.approx(max(2 * ps[smallest], ps[largest]))
    assert rows["random"].against is None
    assert rows["random"].verdict == ""
    assert rows["badge"].seconds == 1.5
    # Of the second to the fourth query: the first was chosen without a model.
    assert rows["badge"].contribution == pytest.approx([0.2, -0.2])
    assert rows["badge"].class_entropy == pytest.approx(3.0)
    table = list(csv.DictReader(io.StringIO(summary.rows_csv())))
    assert float(table[0]["hard_contribution_minus_pool"]) == pytest.approx(-0.2)
    assert len(summary.lines()) == 5


def test_a_study_is_summarised_over_seeds_and_rounds():
    """Every number of every round is another one, and one loop has a round more. By its own p a strategy is better
    than random queries, and as one of two that were compared it is not."""
    gains = {"random": [0.0] * 5, "margin": [0.05, 0.01, 0.04, 0.005, 0.03], "badge": [0.1, -0.08, 0.05, -0.1, 0.02]}
    config = StudyConfig(strategies=list(gains), methods=["joint"], seeds=5)
    generator, curves = np.random.default_rng(0), {}
    plain = 0.3 + 0.1 * np.arange(4) + 0.02 * generator.normal(size=(5, 4))
    for strategy, seed in itertools.product(gains, range(5)):
        curves["joint", strategy, seed] = rounds = curve(*(plain[seed] + gains[strategy][seed]).tolist())
        for r in rounds:
            r["labels"] += seed
            r["seconds"] = dict(zip(r["seconds"], generator.uniform(1, 9, 3).tolist(), strict=True))
            if r["balance"]:
                r["balance"] = {"contribution": generator.normal(size=2).tolist(), "class_entropy": generator.random()}
        if (strategy, seed) != ("badge", 2):
            rounds.pop()
    rows = {row.strategy: row for row in summarise(curves, config).rows["joint"]}
    for strategy, row in rows.items():
        loops = [curves["joint", strategy, seed] for seed in range(5)]
        later = [r for loop in loops for r in loop[1:]]
        assert row.labels == [22, 42, 62]
        wanted = [np.mean([loop[k]["accuracy"] for loop in loops]) for k in range(3)]
        assert [value.mean for value in row.accuracy] == pytest.approx(wanted)
        assert row.last.mean == pytest.approx(np.mean([loop[-1]["accuracy"] for loop in loops]))
        assert row.area.mean == pytest.approx(np.mean([area(loop) for loop in loops]))
        assert row.seconds == pytest.approx(np.mean([r["seconds"]["score"] + r["seconds"]["select"] for r in later]))
        assert row.contribution == pytest.approx(np.mean([r["balance"]["contribution"] for r in later], axis=0))
        assert row.class_entropy == pytest.approx(np.mean([r["balance"]["class_entropy"] for r in later]))
    found = rows["margin"].against
    assert found.p == pytest.approx(stats.ttest_1samp(gains["margin"], 0).pvalue)
    assert found.p < 0.05 < found.adjusted < 0.5
    assert {s: row.verdict for s, row in rows.items()} == {
        "random": "",
        "margin": "not told from random",
        "badge": "not told from random",
    }


def test_an_area_may_begin_later():
    rounds = [{"labels": 20, "validation": 0.1}, {"labels": 40, "validation": 0.3}, {"labels": 80, "validation": 0.7}]
    # From 0.2 at 30 labels: 10 labels of 0.25 and 40 of 0.5 in the mean.
    assert area(rounds, "validation", since=30) == pytest.approx((10 * 0.25 + 40 * 0.5) / 50)
    assert area(rounds, "validation", since=20) == area(rounds, "validation")
    assert area(rounds, "validation", since=80) == 0.7


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.05, 0.06, 0.05, 0.04, 0.05], "better than random"),
        ([-0.05, -0.06, -0.05, -0.04, -0.05], "worse than random"),
        ([0.05, -0.06, 0.05, -0.04, 0.01], "not told from random"),
        ([0.05, 0.05, 0.05], "not told from random"),
        ([0.05], ""),
    ],
)
def test_a_verdict_says_which_way_and_whether(gains, verdict):
    config = StudyConfig(strategies=["random", "badge"], methods=["joint"], seeds=len(gains))
    plain = [0.50, 0.62, 0.55, 0.41, 0.58]
    curves = {("joint", "random", seed): curve(plain[seed]) for seed in range(len(gains))}
    curves |= {("joint", "badge", seed): curve(plain[seed] + gain) for seed, gain in enumerate(gains)}
    rows = {r.strategy: r.verdict for r in summarise(curves, config).rows["joint"]}
    assert rows == {"random": "", "badge": verdict}
