"""The figures show what the store says, down to the drawn points."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
from report_tools import OMICS, MadeStore, make_pool, report

from raybal.report import figures
from raybal.report.data import read_experiment
from raybal.report.judgement import even_shares
from raybal.report.lines import OVERLAID, Line, accuracy_lines, contribution_lines, phase_seconds, training_lines
from raybal.rounds import PHASES
from raybal.store import Store


def drawn(svg: str, series: str) -> np.ndarray:
    """The points of one drawn series, in the figure's coordinates."""
    path = re.search(rf'data-series="{series}"><path d="([^"]+)"', svg)
    assert path, series
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path.group(1)), float)


def test_accuracy_is_that_of_the_evaluations(made):
    experiment, names = read_experiment(made.store), ("video", "audio")
    for metric in ("accuracy", "balanced_accuracy", "nll"):
        lines = accuracy_lines(experiment, names, metric)
        assert [line.name for line in lines] == ["fused", *names]
        for line in lines:
            assert line.x == (4, 8, 12)
            assert line.y == tuple(made.facts[r, "evaluate"]["test"][line.head][metric] for r in range(3))


def test_contributions_are_means_over_the_query_and_over_the_pool(made):
    lines = contribution_lines(read_experiment(made.store), ("video", "audio"), "contribution")
    for k, m in enumerate(("video", "audio")):
        query, pool = [line for line in lines if line.head == m]
        # At the round of the model that they are contributions to: the last one has not been followed by a query.
        assert query.x == pool.x == (0, 1)
        np.testing.assert_allclose(query.y, [made.shares[r][:, k].mean() for r in (1, 2)])
        np.testing.assert_allclose(pool.y, [made.facts[r, "select"]["pool"]["contribution"][k] for r in (1, 2)])
        assert (query.stroke, pool.stroke) == ("solid", "dashed")


def test_a_models_own_contributions_stand_beside_those_of_its_query(tmp_path):
    made = MadeStore(Store(tmp_path / "store"), make_pool(tmp_path / "pool"))
    for number in range(3):
        made.round(number, contribution={"validation": [0.5, 0.5], "test": [0.6 + number / 10, 0.4 - number / 10]})
    experiment, names = read_experiment(made.store), ("video", "audio")
    lines = contribution_lines(experiment, names, "contribution")
    assert [line.name for line in lines if line.head == "video"] == [
        "video in the query",
        "video in the pool",
        "video in the test items",
    ]
    own = [line for line in lines if line.stroke == "dashdot"]
    assert [line.x for line in own] == [(0, 1, 2)] * 2
    np.testing.assert_allclose([line.y for line in own], [[0.6, 0.7, 0.8], [0.4, 0.3, 0.2]])
    contribution, dominated = figures.contribution_charts(experiment, names, (0.5, 0.5))
    assert contribution.strokes == (("solid", "query"), ("dashed", "pool"), ("dashdot", "test items"))
    assert dominated.strokes == (("solid", "query"), ("dashed", "pool"))
    # Side by side, and on one scale of rounds.
    for k in range(2):
        np.testing.assert_array_equal(drawn(contribution.svg, str(3 * k))[:, 0], drawn(dominated.svg, str(2 * k))[:, 0])


def test_without_test_items_a_models_own_contributions_are_those_in_validation(tmp_path):
    made = MadeStore(Store(tmp_path / "store"), make_pool(tmp_path / "pool", test=0))
    made.round(0, None, contribution={"validation": [0.7, 0.3], "test": None})
    lines = contribution_lines(read_experiment(made.store), ("video", "audio"), "contribution")
    assert [(line.name, line.x, line.y) for line in lines] == [
        ("video in the validation items", (0,), (0.7,)),
        ("audio in the validation items", (0,), (0.3,)),
    ]


@pytest.mark.parametrize(
    ("absent", "even"), [({}, [0.5]), ({"audio": [f"item-{i:03d}" for i in range(24)]}, [0.9, 0.1])]
)
def test_what_is_called_even_counts_what_items_lack(tmp_path, absent, even):
    made = MadeStore(Store(tmp_path / "store"), make_pool(tmp_path / "pool", absent=absent))
    made.round(0)
    made.round(1)
    experiment, names = read_experiment(made.store), ("video", "audio")
    chart = figures.contribution_charts(experiment, names, even_shares(made.pool, "train"))[0]
    line = contribution_lines(experiment, names, "contribution")
    points = np.concatenate([drawn(chart.svg, str(i)) for i in range(4)])
    slope, offset = np.polyfit(points[:, 1], np.concatenate([one.y for one in line]), 1)
    levels = [slope * drawn(chart.svg, f"level-{k}")[0, 1] + offset for k in range(len(even))]
    np.testing.assert_allclose(levels, even, atol=0.002)
    assert f'data-series="level-{len(even)}"' not in chart.svg
    for k in range(len(even)):
        style = re.search(rf'data-series="level-{k}"><path[^>]* style="([^"]+)"', chart.svg)
        assert style
        assert f"var(--{'muted' if len(even) == 1 else f'modality-{k}'})" in style.group(1)


def test_dominance_is_the_share_of_items_with_the_largest_contribution(made):
    lines = contribution_lines(read_experiment(made.store), ("video", "audio"), "dominated")
    for k, m in enumerate(("video", "audio")):
        query, pool = [line for line in lines if line.head == m]
        np.testing.assert_allclose(query.y, [(made.shares[r].argmax(1) == k).mean() for r in (1, 2)])
        np.testing.assert_allclose(pool.y, [made.facts[r, "select"]["pool"]["dominated"][k] for r in (1, 2)])


def test_training_lines_are_the_history(made):
    experiment, names = read_experiment(made.store), ("video", "audio")
    for of in ("loss", "pace", "validation", "coefficient"):
        lines = training_lines(experiment, names, of)
        assert {line.round for line in lines} == {0, 1, 2}
        for line in lines:
            history = made.facts[line.round, "train"]["history"]
            wanted = {
                "loss": [r["loss"] for r in history],
                "pace": [r["pace"] for r in history],
                "validation": [r["validation"][line.head]["accuracy"] for r in history],
                "coefficient": [r["coefficient"][names.index(line.head)] for r in history if line.head in names],
            }
            assert line.x == (1, 2, 3)
            assert list(line.y) == wanted[of]


def test_what_a_method_of_ones_own_records_is_drawn_by_its_name(made):
    facts = made.facts[2, "train"]
    for number, record in enumerate(facts["history"]):
        record |= {"my_number": [0.5 * number, 1.0], "matrix": [[1.0, 2.0], [3.0, 4.0]]}
    made.write(2, "train", facts)
    words = report(made).words
    assert "My number" in words
    assert "Matrix" not in words


def test_only_the_newest_rounds_are_drawn_over_each_other(made):
    for number in range(3, 3 + OVERLAID):
        made.round(number)
    lines = training_lines(read_experiment(made.store), ("video", "audio"), "loss")
    assert [line.round for line in lines] == list(range(3, 3 + OVERLAID))


def test_drawn_points_are_the_numbers(made):
    lines = accuracy_lines(read_experiment(made.store), ("video", "audio"), "accuracy")
    chart = figures.line_chart("Accuracy", lines, ("video", "audio"), x="labels", top=1.0)
    points = np.concatenate([drawn(chart.svg, str(i)) for i in range(3)])
    for axis, values in enumerate(
        (np.concatenate([line.x for line in lines]), np.concatenate([line.y for line in lines]))
    ):
        # One linear scale for all lines; the figure's coordinates have two decimals.
        slope, offset = np.polyfit(values, points[:, axis], 1)
        np.testing.assert_allclose(slope * values + offset, points[:, axis], atol=0.02)
        assert (slope > 0) == (axis == 0)


def test_bars_are_as_high_as_phases_are_long(made):
    experiment = read_experiment(made.store)
    seconds = dict(phase_seconds(experiment))
    heights, wanted = [], []
    chart = figures.time_chart(experiment)
    for r in range(3):
        assert seconds[r] == [made.facts[r, phase]["seconds"] for phase in PHASES]
        for phase in PHASES:
            y = drawn(chart.svg, f"{r}-{phase}")[:, 1]
            heights.append(y.max() - y.min())
            wanted.append(made.facts[r, phase]["seconds"])
    ratio = np.array(heights) / wanted
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.01)


def test_each_modality_keeps_its_colour(made):
    experiment, names = read_experiment(made.store), ("video", "audio")
    for lines in (
        accuracy_lines(experiment, names, "accuracy"),
        contribution_lines(experiment, names, "contribution"),
        training_lines(experiment, names, "coefficient"),
    ):
        svg = figures.line_chart("", lines, names, x="").svg
        for i, line in enumerate(lines):
            style = re.search(rf'data-series="{i}"><path[^>]* style="([^"]+)"', svg)
            colour = "ink" if line.head == "fused" else f"modality-{names.index(line.head)}"
            assert style
            assert f"stroke: var(--{colour})" in style.group(1)


def test_many_modalities_and_one_round_can_be_drawn(tmp_path):
    made = MadeStore(Store(tmp_path / "store"), make_pool(tmp_path / "pool", OMICS))
    made.round(0)
    lines = accuracy_lines(read_experiment(made.store), made.pool.info.names, "accuracy")
    chart = figures.line_chart("Accuracy", lines, made.pool.info.names, x="labels", top=1.0)
    assert [len(drawn(chart.svg, str(i))) for i in range(4)] == [1, 1, 1, 1]
    assert chart.heads == ("fused", "mrna", "meth", "mirna")


@pytest.mark.parametrize("name", ["a$b$", "<b>&\"'", "#010101"])
def test_a_strange_name_is_no_formula_and_no_markup(name):
    line = Line(name, (1, 2), (0.1, 0.2), name)
    svg = figures.line_chart(name, [line], [name], x=name, top=1.0).svg
    assert "<b>" not in svg
    assert name in [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]+)</text>", svg)]
