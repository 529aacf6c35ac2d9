"""The report of a sweep shows what the sweep found, down to the drawn points."""

from __future__ import annotations

import dataclasses
import html
import re
import shlex
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from report_tools import HOSTILE, Page, assert_nothing_is_fetched
from scipy import stats

from raybal.balancing.base import METHODS
from raybal.settings import from_plain
from raybal.store import Store
from raybal.table.statistics import interval
from raybal.table.summary import RowSummary, Summary
from raybal.tuning import charts, parallel
from raybal.tuning.config import TuneConfig
from raybal.tuning.page import published_pairs, write_page
from raybal.tuning.spaces import Dimension, Space, Values, draw, space_of
from raybal.tuning.summary import Found, RowFound, SweepSummary
from raybal.tuning.values import shown

EPOCHS = 6
GROUPS = ("method", "pace", "learning_rate", "weight_decay")
RATE = "train.learning_rate"
NONE = "\N{EN DASH}"


def make_row(
    name: str = "mlb",
    *,
    finished: int = 10,
    stopped: int = 4,
    diverged: int = 2,
    space: Space | None = None,
    rungs: Sequence[int] = (2, 4),
    gap: float = 0.5,
    seed: int = 0,
) -> RowFound:
    """A row of trials of random values, accuracies and ends; two finalists of three seeds."""
    generator = np.random.default_rng(seed)
    space = space_of(METHODS.get("mlb").Settings(), GROUPS, {}, EPOCHS) if space is None else space

    def value(key: str, dimension: Dimension):
        if dimension.kind == "choice":
            return dimension.values[generator.integers(len(dimension.values))]
        low, high = dimension.bounds
        drawn = float(np.exp(generator.uniform(*np.log([low, high])))) if dimension.kind == "loguniform" else None
        return generator.uniform(low, high) if drawn is None else drawn

    trials = []
    states = ["finished"] * finished + ["stopped"] * stopped + ["diverged"] * diverged
    for number, state in enumerate(generator.permutation(states).tolist()):
        accuracies = {e: float(a) for e, a in enumerate(generator.uniform(0.2, 0.9, EPOCHS), 1)}
        result = None
        if state == "stopped":
            last = int(generator.choice(rungs))
            accuracies = {e: a for e, a in accuracies.items() if e <= last}
        elif state == "diverged":
            accuracies, result = {1: accuracies[1]}, {"diverged": f"training has diverged in epoch 2 of {name}"}
        else:
            epoch = max(accuracies, key=accuracies.__getitem__)
            result = {"epoch": epoch, "seconds": 2.5, "nll": 1.0, "gap": gap * float(generator.uniform())}
        trials.append(Found(number, draw(space, value), accuracies, result, seconds=1.5))
    row = RowFound(name, "mlb", space, trials, list(rungs))
    return dataclasses.replace(row, finalists={t.number: generator.uniform(0.4, 0.9, 3).tolist() for t in row.best(2)})


def make_final(names: Sequence[str], seeds: int = 4) -> Summary:
    """A final table of random accuracies."""
    generator = np.random.default_rng(1)
    cells, rows = [], []
    for name in names:
        values = generator.uniform(0.5, 0.9, seeds)
        one = interval(values.tolist())
        cells += [{"method": name, "seed": 3 + k, "accuracy": float(v)} for k, v in enumerate(values)]
        rows.append(RowSummary(name, 0.001, seeds, one, one, one, one, {}, {}, interval([1.5]), []))
    return Summary(rows, (), cells, [], None)


def written(folder, rows: Sequence[RowFound], *, modalities=("image", "audio"), final=None, **settings) -> str:
    """The page of a sweep, as it is written."""
    store = Store(folder / "sweep")
    for row in rows:
        store.write_bytes(f"tuned/{row.name}.yaml", f"balancing: {{method: mlb}}  # <{row.name}>\n".encode())
    content = {"pool": "pools/my pool", "methods": ["mlb"], "finalist_seeds": 3, "seeds": 0}
    config = from_plain(TuneConfig, content | settings)
    place = write_page(store, SweepSummary(list(rows), final, modalities), config)
    assert place == f"{folder}/sweep/report.html"
    return (folder / "sweep/report.html").read_text()


def subpaths(svg: str, series: str) -> list[np.ndarray]:
    """The unbroken pieces of a drawn series, in the figure's coordinates."""
    path = re.search(rf'data-series="{re.escape(series)}"><path d="([^"]+)"', svg)
    assert path, series
    return [
        np.array([point.split() for point in re.split("[ML]", piece) if point.strip()], float)
        for piece in re.findall(r"M[^M]+", path.group(1).replace("z", ""))
    ]


def dots(svg: str, series: str) -> np.ndarray:
    """The marked points of a drawn series."""
    group = re.search(rf'data-series="{series}">(.*?)</g>\s*</g>', svg, re.S)
    points = re.findall(r'<use href="[^"]+" x="([^"]+)" y="([^"]+)"', group.group(1)) if group else []
    return np.array(points, float).reshape(-1, 2)


def series_of(svg: str, prefix: str) -> list[str]:
    return re.findall(rf'data-series="({prefix}[^"]*)"', svg)


def colours_of(svg: str, kind: str) -> dict[str, str]:
    """The colours of lines by the number of their trial."""
    pattern = rf'data-series="{kind}-(\d+)"><path[^>]* style="[^"]*stroke: var\(--([\w-]+)\)'
    return dict(re.findall(pattern, svg))


def label_of(svg: str) -> str:
    found = re.search(r'aria-label="([^"]*)"', svg)
    assert found
    return html.unescape(found.group(1))


def assert_on_one_scale(values: Sequence[float], drawn: Sequence[float]) -> None:
    """Checks that drawn coordinates are a linear function of values; they have two decimals."""
    slope, offset = np.polyfit(values, drawn, 1)
    np.testing.assert_allclose(slope * np.asarray(values) + offset, drawn, atol=0.02)
    assert slope


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, SweepSummary, str]:
    """The folder, the summary and the page of a sweep; for tests that change none of them."""
    folder = tmp_path_factory.mktemp("finished")
    # The runs of the published settings of joint diverged.
    final = make_final(["mlb", "strong", "mlb-published", "strong-published", "joint"])
    rows = [
        make_row("mlb", finished=20),
        make_row("strong", finished=3, stopped=0, diverged=1, seed=1),
        make_row("joint", finished=6, seed=2),
    ]
    return folder / "sweep", SweepSummary(rows, final, ("image", "audio")), written(folder, rows, final=final)


def test_the_files_are_those_of_the_summary(sweep):
    folder, summary, text = sweep
    for name, content in (
        ("trials.csv", summary.trials_csv()),
        ("table.csv", summary.final.rows_csv()),
        ("cells.csv", summary.final.cells_csv()),
        ("report.html", text),
    ):
        assert (folder / name).read_text() == content


def test_the_summary_says_what_was_tried_and_what_was_chosen(sweep):
    table = Page(sweep[2]).tables[0]
    tried = ((["20", "4", "2"], "39.0 s"), (["3", "0", "1"], "6.00 s"), (["6", "4", "2"], "18.0 s"))
    for row, cells, (counts, seconds) in zip(sweep[1].rows, table[2:], tried, strict=True):
        chosen = max(row.finalists, key=lambda n: np.mean(row.finalists[n]))
        (trial,) = [t for t in row.trials if t.number == chosen]
        wanted = [*counts, str(sum(len(t.accuracies) for t in row.trials)), seconds]
        wanted += [str(chosen), f"{100 * np.mean(row.finalists[chosen]):.1f}%"]
        assert cells[1:-1] == wanted
        for key, value in trial.values.items():
            assert f"{key.removeprefix('balancing.')} {shown(value)}" in cells[-1]
    assert [cells[0] for cells in table[2:]] == ["mlb", "strong(mlb)", "joint(mlb)"]


def test_tuned_settings_stand_beside_published_ones(sweep):
    final = sweep[1].final
    accuracies = {r.name: [c["accuracy"] for c in final.cells if c["method"] == r.name] for r in final.rows}
    page = Page(sweep[2])
    (pairs,) = [t for t in page.tables if "tuned minus published" in t[0]]
    assert [cells[0] for cells in pairs[1:]] == ["mlb", "strong"]
    ps = {n: stats.ttest_rel(accuracies[n], accuracies[f"{n}-published"]).pvalue for n in ("mlb", "strong")}
    low, high = sorted(ps, key=ps.__getitem__)
    adjusted = {low: min(1, 2 * ps[low]), high: max(min(1, 2 * ps[low]), ps[high])}
    for name, tuned, published, difference in pairs[1:]:
        assert tuned.startswith(f"{100 * np.mean(accuracies[name]):.1f} ±")
        assert published.startswith(f"{100 * np.mean(accuracies[name + '-published']):.1f} ±")
        mean = 100 * (np.mean(accuracies[name]) - np.mean(accuracies[f"{name}-published"]))
        assert difference.startswith(f"{mean:+.1f} ±")
        assert difference.endswith(f"p {adjusted[name]:.2g}")
    (methods,) = [t for t in page.tables if "macro-F1" in t[0]]
    assert [cells[0] for cells in methods[1:]] == list(accuracies)


def test_a_row_that_is_not_in_the_final_table_is_in_no_pair():
    assert published_pairs(make_final(["mlb", "ogm-published"]), ["mlb", "ogm"]) == []


def test_every_trial_is_in_the_history_by_its_state():
    row = make_row()
    svg = charts.history_chart(row).svg
    for state, count in (("finished", 10), ("stopped", 4), ("diverged", 2)):
        points = dots(svg, state)
        own = [t for t in row.trials if t.state == state]
        assert len(points) == count
        assert_on_one_scale([t.number for t in own], points[:, 0])
        if state == "diverged":
            assert len(set(points[:, 1])) == 1  # at the foot: they have no accuracy
        else:
            assert_on_one_scale([t.accuracy for t in own], points[:, 1])
    (best,) = subpaths(svg, "best")
    reached = list(accumulate((t.accuracy for t in row.trials if t.state == "finished"), max))
    slope, offset = np.polyfit([t.accuracy for t in row.finished], dots(svg, "finished")[:, 1], 1)
    np.testing.assert_allclose(
        sorted(set(best[:, 1])), sorted({round(slope * a + offset, 2) for a in reached}), atol=0.02
    )
    np.testing.assert_allclose(dots(svg, "chosen")[0, 1], slope * row.chosen.accuracy + offset, atol=0.02)
    assert f"Chosen: trial {row.chosen.number} with {100 * row.chosen.accuracy:.1f}%" in label_of(svg)


def test_learning_curves_are_those_of_the_trials():
    row = make_row()
    svg = charts.curves_chart(row).svg
    assert len(series_of(svg, "curve-")) == len(row.trials)
    assert series_of(svg, "rung-") == ["rung-2", "rung-4"]
    epochs, heights, accuracies = [], [], []
    for trial in row.trials:
        (curve,) = subpaths(svg, f"curve-{trial.number}")
        assert len(curve) == len(trial.accuracies)
        epochs += list(zip(trial.accuracies, curve[:, 0], strict=True))
        heights += curve[:, 1].tolist()
        accuracies += trial.accuracies.values()
    assert_on_one_scale(*zip(*epochs, strict=True))
    assert_on_one_scale(accuracies, heights)
    colours = colours_of(svg, "curve")
    assert [n for n, colour in colours.items() if colour == "modality-1"] == [str(row.chosen.number)]
    stopped = {colours[str(t.number)] for t in row.trials if t.state == "stopped"}
    assert len(stopped) == 1
    assert stopped.isdisjoint(colours[str(t.number)] for t in row.finished)


def test_correlations_are_spearmans_over_survivors(tmp_path):
    row = make_row()
    wanted = {
        e: stats.spearmanr([t.accuracies[e] for t in row.finished], [t.accuracy for t in row.finished]).statistic
        for e in range(1, EPOCHS + 1)
    }
    drawing = charts.correlation_chart(row)
    assert_on_one_scale(list(wanted.values()), subpaths(drawing.svg, "correlation")[0][:, 1])
    assert all(f"epoch {e} {value:.2f}" in label_of(drawing.svg) for e, value in wanted.items())
    page = Page(written(tmp_path, [row]))
    (table,) = [t for t in page.tables if "after epoch" in t[0]]
    lasts = [max(t.accuracies) for t in row.trials if t.state == "stopped"]
    assert table[1:] == [[str(e), str(lasts.count(e)), "10", f"{wanted[e]:.2f}"] for e in (2, 4)]
    assert "Those that were stopped are not among them" in page.words


def test_without_stopping_nothing_is_said_of_survivors(tmp_path):
    page = Page(written(tmp_path, [make_row(finished=5, stopped=0, rungs=())]))
    assert "Spearman's, over the 5 finished trials" in page.words
    assert "Those that were stopped are not among them" not in page.words
    assert not [t for t in page.tables if "after epoch" in t[0]]


def test_the_front_is_what_none_beats_in_both():
    row = make_row()
    front = [
        t for t in row.finished
        if not any(o.accuracy >= t.accuracy and o.gap <= t.gap and o is not t for o in row.finished)
    ]  # fmt: skip
    assert 1 < len(front) < len(row.finished)
    drawing = charts.front_chart(row)
    (line,) = subpaths(drawing.svg, "front")
    others = [t for t in row.finished if t not in front]
    drawn = np.concatenate([line, dots(drawing.svg, "finished")])
    shown_trials = sorted(front, key=lambda t: -t.accuracy) + others
    assert_on_one_scale([t.gap for t in shown_trials], drawn[:, 0])
    assert_on_one_scale([t.accuracy for t in shown_trials], drawn[:, 1])
    assert f"Chosen: trial {row.chosen.number}" in label_of(drawing.svg)


def test_a_small_difference_is_drawn_small():
    row = make_row(finished=2, stopped=0, diverged=0, space={})
    close = [dataclasses.replace(t, accuracies={1: a}, result=t.result | {"epoch": 1})
             for t, a in zip(row.trials, (0.700, 0.702), strict=True)]  # fmt: skip
    heights = dots(charts.history_chart(dataclasses.replace(row, trials=close)).svg, "finished")[:, 1]
    far = [dataclasses.replace(t, accuracies={1: a}) for t, a in zip(close, (0.2, 0.9), strict=True)]
    whole = dots(charts.history_chart(dataclasses.replace(row, trials=far)).svg, "finished")[:, 1]
    assert 0 < abs(np.diff(heights)) < 0.1 * abs(np.diff(whole))


def test_bars_are_as_long_as_keys_are_important():
    row = make_row(finished=20)
    drawing = charts.importance_chart(row)
    bars = series_of(drawing.svg, "importance-")
    assert len(bars) == len(row.importance)
    lengths = [np.ptp(subpaths(drawing.svg, name)[0][:, 0]) for name in bars]
    assert lengths == sorted(lengths, reverse=True)
    np.testing.assert_allclose(
        np.array(lengths) / sum(lengths), sorted(row.importance.values(), reverse=True), atol=0.001
    )
    # Optuna gives equal ones in any order.
    other = make_row(finished=20)
    other.__dict__["importance"] = dict(reversed(row.importance.items()))
    assert charts.importance_chart(other) == drawing
    assert charts.importance_chart(make_row(finished=4)) is None


def test_a_trial_is_a_line_over_its_keys_with_gaps():
    row = make_row()
    (drawing,) = parallel.parallel_charts(row)
    keys = list(row.space)
    assert len(series_of(drawing.svg, "axis-")) == 1 + len(keys)
    assert len(series_of(drawing.svg, "trial-")) == len(row.trials)
    columns = [subpaths(drawing.svg, f"axis-{x}")[0] for x in range(1 + len(keys))]
    at, rates = [], []
    for trial in row.trials:
        has = [trial.state != "diverged", *(key in trial.values for key in keys)]
        runs = sum(now and not before for before, now in zip([False, *has], has, strict=False))
        pieces = subpaths(drawing.svg, f"trial-{trial.number}")
        assert len(pieces) == runs
        assert min(map(len, pieces)) > 1
        points = np.concatenate(pieces)
        column = columns[1 + keys.index(RATE)]
        rates.append(np.log(trial.values[RATE]))
        at.append(points[np.abs(points[:, 0] - column[0, 0]) < 0.02][0, 1])
    assert_on_one_scale(rates, at)
    low, high = np.log(row.space[RATE].bounds)
    slope, offset = np.polyfit(rates, at, 1)
    np.testing.assert_allclose([slope * low + offset, slope * high + offset], columns[1][:, 1], atol=0.1)
    colours = dict(
        re.findall(r'data-series="trial-(\d+)"><path[^>]* style="[^"]*stroke: var\(--([\w-]+)\)', drawing.svg)
    )
    assert [n for n, colour in colours.items() if colour == "modality-1"] == [str(row.chosen.number)]
    assert {colours[str(t.number)] for t in row.trials if t.state == "diverged"} == {"muted"}
    ranked = sorted((t for t in row.trials if t.state != "diverged" and t is not row.chosen), key=lambda t: t.accuracy)
    shades = [int(colours[str(t.number)].removeprefix("phase-")) for t in ranked]
    assert shades == sorted(shades)
    assert len(set(shades)) == charts.SHADES


def test_choices_are_at_even_distances_and_a_fixed_key_is_no_axis():
    values: list[Values] = [{"model.fusion": name} for name in ("concat", "film", "gated", "film")]
    space = {
        "model.fusion": Dimension("choice", values=["concat", "film", "gated"]),
        "train.epochs": Dimension("choice", values=[7]),
        "train.weight_decay": Dimension("uniform", 0.1, 0.1),
    }
    trials = [
        Found(i, v | {"train.epochs": 7}, {1: 0.5}, {"epoch": 1, "seconds": 1.0, "gap": 0.0})
        for i, v in enumerate(values)
    ]
    row = RowFound("mlb", "mlb", space, trials, [], {0: [0.5]})
    assert parallel.searched(space) == ["model.fusion"]
    (drawing,) = parallel.parallel_charts(row)
    ends = [subpaths(drawing.svg, f"trial-{i}")[0][-1, 1] for i in range(4)]
    assert ends[1] == ends[3]
    assert ends[0] - ends[1] == pytest.approx(ends[1] - ends[2], abs=0.02)
    assert parallel.parallel_charts(dataclasses.replace(row, space={"train.epochs": space["train.epochs"]})) == []


def test_many_keys_are_parted_and_each_has_one_axis():
    settings = METHODS.get("mlb").Settings()
    space = space_of(settings, ("method", "paces", "learning_rate"), {}, EPOCHS, ("image", "audio", "text"))
    row = make_row(space=space)
    drawings = parallel.parallel_charts(row)
    assert [len(series_of(d.svg, "axis-")) - 1 for d in drawings] == [16, 16]  # of 32 keys
    named = [label_of(d.svg).partition("an axis a key: ")[2].partition(". ")[0].split(", ") for d in drawings]
    assert [key for names in named for key in names] == [key.removeprefix("balancing.") for key in space]
    assert drawings[1].title == "Values of each trial, 2 of 2"


def test_one_modality_has_no_balance(tmp_path):
    page = Page(written(tmp_path, [make_row()], modalities=("image",)))
    assert "balance" not in page.words.lower().partition("configuration")[0]
    assert len([t for t, attributes in page.tags if t == "svg" and attributes.get("role") == "img"]) == 5
    unmeasured = Page(written(tmp_path / "zero", [make_row(gap=0.0)]))
    assert "The balance gap could not be measured" in unmeasured.words
    assert "The balance gap could not be measured" not in page.words


def test_one_trial_of_all_is_enough_for_a_page(tmp_path):
    row = make_row(finished=1, stopped=0, diverged=5)
    page = Page(written(tmp_path, [row]))
    for words in (
        "1 finished trial is too few to tell which keys matter",
        "It needs three finished trials, and there is 1",
        "There is no final table",
        "training has diverged in epoch 2 of mlb",
    ):
        assert words in page.words
    (trials,) = [t for t in page.tables if "state" in t[0]]
    assert [f.name for f in (tmp_path / "sweep").glob("*.csv")] == ["trials.csv"]
    assert sorted(cells[1] for cells in trials[1:]) == ["diverged"] * 5 + ["finished, chosen"]
    assert [cells[2] for cells in trials[1:] if cells[1] == "diverged"] == [NONE] * 5


def test_a_row_without_searched_keys_has_a_page_too(tmp_path):
    row = make_row(space={})
    assert not row.importance
    page = Page(written(tmp_path, [row]))
    assert "No key is searched." in page.words
    assert "No searched key of this row has more than one value." in page.words
    assert page.tables[0][-1][-1] == NONE


def test_finalists_and_trials_are_listed(sweep):
    row, page = sweep[1].rows[0], Page(sweep[2])
    finalists = next(t for t in page.tables if "seed 0" in t[0])
    assert finalists[0][:5] == ["trial", "seed 0", "seed 1", "seed 2", "mean"]
    ranked = sorted(row.finalists, key=lambda n: -np.mean(row.finalists[n]))
    for number, cells in zip(ranked, finalists[1:], strict=True):
        values = row.finalists[number]
        assert cells[:5] == [str(number), *(f"{100 * v:.1f}%" for v in values), f"{100 * np.mean(values):.1f}%"]
    assert [cells[5] for cells in finalists[1:]] == ["chosen", ""]
    trials = next(t for t in page.tables if "state" in t[0])
    assert trials[0][5:] == [key.removeprefix("balancing.") for key in row.space]
    for trial, cells in zip(row.trials, trials[1:], strict=True):
        accuracy = NONE if trial.state == "diverged" else f"{100 * trial.accuracy:.1f}%"
        gap = NONE if trial.gap is None else f"{trial.gap:.3f}"
        assert cells[0] == str(trial.number)
        assert cells[2:5] == [accuracy, gap, str(len(trial.accuracies))]
        assert cells[5:] == [shown(trial.values[key]) if key in trial.values else NONE for key in row.space]


def test_settings_found_are_shown_with_commands_that_take_them(sweep):
    blocks = [html.unescape(b) for b in re.findall(r'<pre tabindex="0">(.*?)</pre>', sweep[2], re.S)]
    names = [row.name for row in sweep[1].rows]
    assert [b for b in blocks if b.startswith("balancing: {")] == [
        f"balancing: {{method: mlb}}  # <{name}>\n" for name in names
    ]
    assert not re.search("# <[a-z]", sweep[2])
    for name, block in zip(names, [b for b in blocks if b.startswith("python ")], strict=True):
        train, loop = (shlex.split(line) for line in block.splitlines())
        for job, command in (("train", train), ("al_loop", loop)):
            file = f"{sweep[0]}/tuned/{name}.yaml"
            assert command[:-1] == ["python", f"jobs/{job}.py", "--config", file, "--pool", "pools/my pool", "--store"]
        assert train[-1] != loop[-1]


def test_a_page_is_one_file_that_fetches_nothing_and_speaks_for_its_figures(sweep):
    folder, summary, text = sweep
    page = Page(text)
    assert_nothing_is_fetched(page)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    figures = [a for t, a in page.tags if t == "svg" and a.get("aria-hidden") != "true"]
    # Of three finished trials the importance of keys is not drawn.
    assert len(figures) == 6 + 5 + 6
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in figures)
    assert len({a["aria-label"] for a in figures}) == len(figures)
    # Colours are the page's, for light and dark.
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", text.partition("<body>")[2])
    links = {a["href"].removeprefix("#") for t, a in page.tags if t == "a"}
    assert links >= {"row-mlb", "row-strong", "row-joint", "summary", "test"}
    assert links <= {a["id"] for _, a in page.tags if "id" in a}
    assert written(folder.parent, summary.rows, final=summary.final) == text


def test_what_people_wrote_is_text_and_never_markup(tmp_path):
    space = {
        "train.x": Dimension("choice", values=[HOSTILE, "$a$", 'b" onload="alert(1)']),
        f'balancing.paces.{HOSTILE}" onload="alert(2).start': Dimension("uniform", 0.0, 1.0),
    }
    page = Page(written(tmp_path, [make_row(space=space)], pool=f"pools/{HOSTILE}"))
    assert_nothing_is_fetched(page)
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert page.words.count(HOSTILE) > 5


def test_schedules_of_a_population_and_who_took_over_whom(tmp_path):
    row = make_row(finished=4, stopped=0, diverged=0, rungs=())
    chosen = row.chosen.number
    schedules = {k: [(0.0, 0.25 * k)] for k in range(4)}
    schedules[chosen] = [(0.0, 1.0), (0.4, 1.0), (0.6, 0.75)]
    event = {"epoch": 4, "member": chosen, "accuracy": 0.25, "strength": 0.3, "from": 0, "accuracy_of_from": 0.5}
    event |= {"strength_of_from": 1.0, "new_strength": 0.75}
    row = dataclasses.replace(row, schedules=schedules, exploits=[event])
    drawn = charts.schedules_chart(row)
    assert drawn is not None
    assert sorted(series_of(drawn.svg, "schedule-")) == [f"schedule-{k}" for k in range(4)]
    (path,) = subpaths(drawn.svg, f"schedule-{chosen}")
    assert_on_one_scale([0.0, 0.4, 0.6, 1.0], path[:, 0])
    assert_on_one_scale([1.0, 1.0, 0.75, 0.75], path[:, 1])
    assert label_of(drawn.svg).endswith(f"member {chosen}: 1.00 at 0%, 1.00 at 40%, 0.75 at 60%.")
    page = Page(written(tmp_path, [row]))
    (takeovers,) = [t for t in page.tables if t[0][:2] == ["after epoch", "member"]]
    assert takeovers[1:] == [["4", str(chosen), "25.0%", "0.30", "0", "50.0%", "1.00", "0.75"]]
    assert charts.schedules_chart(make_row()) is None
