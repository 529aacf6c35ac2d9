"""The report as a file: its numbers, and that nothing in it is fetched or run."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_tools import (
    HOSTILE,
    OMICS,
    MadeStore,
    Page,
    assert_nothing_is_fetched,
    make_pool,
    report,
    sidecar_of,
    store_in,
    text,
)

from raybal.labelling.journal import Answer, Journal
from raybal.report.page import write_report
from raybal.rounds import PHASES
from raybal.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished store of three rounds, and its page; for tests that change neither."""
    made = store_in(tmp_path_factory.mktemp("finished"))
    for number in range(3):
        made.round(number)
    made.end("the label budget is spent")
    return made, report(made)


class Bucket(Store):
    """A store in memory that is reached as an object store is."""

    def __init__(self) -> None:
        super().__init__("mock:///bucket/experiment")

    def write_bytes(self, name, content):
        self.filesystem.create_dir(self.path(name).rpartition("/")[0], recursive=True)
        super().write_bytes(name, content)


def test_the_table_holds_the_test_metrics(finished):
    made, page = finished
    (table,) = [t for t in page.tables if "Balanced accuracy" in t[0]]
    for r, cells in enumerate(table[2:]):
        test = made.facts[r, "evaluate"]["test"]
        heads = ("fused", "video", "audio")
        wanted = [str(r), str(4 * r + 4)]
        wanted += [f"{100 * test[h][metric]:.1f}%" for metric in ("accuracy", "balanced_accuracy") for h in heads]
        wanted += [f"{test[h]['nll']:.3f}" for h in heads]
        assert cells == wanted


def test_the_table_of_balance_is_that_of_the_queries(finished):
    made, page = finished
    (table,) = [t for t in page.tables if "Contribution, query minus pool" in t[0]]
    assert [row[0] for row in table[2:]] == ["1", "2"]
    for number, cells in ((1, table[2]), (2, table[3])):
        shares, pool = made.shares[number], made.facts[number, "select"]["pool"]
        differences = shares.mean(0) - pool["contribution"]
        assert cells[1:3] == [f"{d:+.3f}" for d in differences]
        assert cells[3:5] == [f"{100 * (shares.argmax(1) == k).mean():.1f}%" for k in (0, 1)]
        # Four items, of three classes: two, one and one; a pool of 15 and 5.
        assert cells[5:] == [f"{1.5 * np.log(2):.2f}", f"{-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)):.2f}"]


def test_another_unit_of_the_budget_is_shown(tmp_path):
    made = store_in(tmp_path, settings={"cost": {"unit": "seconds"}, "label_budget": 500})
    made.round(0)
    made.write(0, "select", {"items": 4, "cost": 123.4, "pool": {}})
    assert "Labels asked for 123 of 500 seconds 4 items in 1 round" in report(made).words


def test_the_newest_accuracy_and_the_budget_lead(finished):
    made, page = finished
    words = page.words
    test = made.facts[2, "evaluate"]["test"]
    assert "Labels asked for 12 of 12 in 3 rounds" in words
    for head in ("fused", "video", "audio"):
        assert f"{head} {100 * test[head]['accuracy']:.1f}%" in words
    assert "Finished The label budget is spent." in words
    assert "Balancing mlb, constant pace" in words
    assert "bmmal, 4 items a round" in words


def test_the_time_table_adds_up(finished):
    made, page = finished
    (table,) = [t for t in page.tables if "score" in t[0]]
    for phase, cell in zip(PHASES, table[-1][1:], strict=False):
        total = sum(made.facts[r, phase]["seconds"] for r in range(3))
        assert cell == (f"{total:.2f} s" if total < 10 else f"{total:.1f} s")


def test_items_are_shown_with_what_was_known_of_them(finished):
    made, page = finished
    words = page.words
    # Of the second query: the first item was predicted as the first class, which is its label.
    first = made.asked[4]
    shares = made.shares[1][0]
    assert f"{first} clips/{first}.mp4 Predicted cat (50.0%) Label cat ✓ agrees" in words
    assert f"video {round(100 * shares[0])}%" in words
    assert f"audio {round(100 * shares[1])}%" in words
    assert "because <0>" in words


def test_labels_are_counted_by_class(made):
    Journal(made.store).add([Answer(made.asked[0], "cow", "late.csv")])
    page = report(made)
    # Each query of 4 is answered cat, dog, cow, cat.
    assert re.search(r"cat 6 dog 3 cow 3", page.words)
    assert "Every class has a label." in page.words
    (table,) = [t for t in page.tables if t[0][0] == "Item" and "Stands" in t[0]]
    assert table[1] == [made.asked[0], "cat (oracle), cow (late.csv)", "cat"]


def test_classes_without_a_label_are_named(tmp_path):
    made = store_in(tmp_path, classes=("cat", "dog", "cow", "emu", "yak"))
    made.answer(0, made.query(0, 3))
    assert "No label yet of 2 of the 5 classes: emu, yak." in report(made).words


def test_what_people_wrote_is_text_and_never_markup(tmp_path):
    quote = '"><img src=https://example.com/x onerror=alert(1)>'
    evil = [HOSTILE, quote, "a&b", "javascript:alert(1)"]
    modality = OMICS[0].__class__("<b>m&m</b>", "features", (20,), "float32", (0.0,) * 20, (1.0,) * 20)
    made = store_in(
        tmp_path,
        (modality, OMICS[1]),
        classes=(HOSTILE, "</title>", "{{ 7 * 7 }}"),
        train=[*evil, *(f"item-{i}" for i in range(8))],
        uris=dict.fromkeys(evil, quote),
        absent={"<b>m&m</b>": [HOSTILE]},
        quarantine=[(HOSTILE, quote, "<i>", "</table>" + HOSTILE)],
        settings={"note": HOSTILE},
    )
    made.asked, ids = [], made.query(0)
    made.answer(0, ids, source="</td>")
    made.train(0)
    made.evaluate(0)
    made.round(1)
    plain = {tag for tag, _ in page_of_plain(tmp_path).tags}
    page = report(made)
    assert {tag for tag, _ in page.tags} <= plain
    assert "script" not in plain
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    for words in (HOSTILE, quote, "a&b", "</title>", "{{ 7 * 7 }}", "<b>m&m</b>", "</table>"):
        assert words in page.words
    assert_nothing_is_fetched(page)


def page_of_plain(tmp_path):
    folder = tmp_path / "plain"
    made = MadeStore(
        Store(folder / "store"), make_pool(folder / "pool", OMICS[:2], quarantine=[("x", "y", "z", "broken")])
    )
    made.round(0)
    made.round(1)
    Journal(made.store).add([Answer(made.asked[0], "cow", "late.csv")])
    return report(made)


def test_nothing_is_fetched(finished):
    made, page = finished
    assert_nothing_is_fetched(page)
    assert "http" not in text(made).replace("http-equiv", "")
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert links <= set(ids)


def test_pictures_and_figures_have_words(finished):
    made, page = finished
    images = [a for tag, a in page.tags if tag == "img"]
    plots = [a for tag, a in page.tags if tag == "svg" and "plot" in a.get("class", "")]
    assert len(images) == 2 * 12
    assert all(a["alt"] for a in images)
    assert len(plots) == 2 + 2 + 5 + 1
    assert all(a["role"] == "img" and a["aria-label"] for a in plots)
    newest = made.facts[2, "evaluate"]["test"]
    assert f"fused {100 * newest['fused']['accuracy']:.1f}%" in plots[0]["aria-label"]


def test_quarantine_is_counted_by_reason_without_details_and_cut(tmp_path):
    reasons = [f"cut short: {i} of 600 declared bytes" if i % 3 else "cannot be read" for i in range(60)]
    rows = [(f"bad-{i:03d}", f"clips/{i}.mp4", "video", reason) for i, reason in enumerate(reasons)]
    rows[1] = (*rows[1][:3], "cut short: " + "x" * 5000)
    made = store_in(tmp_path, quarantine=rows)
    page = report(made)
    counts, table = [t for t in page.tables if "Reason" in t[0]]
    assert counts[1:] == [["cut short", "video", "40"], ["cannot be read", "video", "20"]]
    # The items keep their details.
    assert [row[0] for row in table[1:]] == [f"bad-{i:03d}" for i in range(50)]
    assert [row[3] for row in table[3:]] == reasons[2:50]
    assert table[2][3].startswith("cut short: xxx")
    assert max(len(row[3]) for row in table) <= 310
    assert "The first 50 of 60 items" in page.words
    assert f"All are listed in {made.pool.store.path('quarantine.parquet')}" in page.words


def test_what_is_said_of_the_start_is_true_of_the_last_one(made):
    content = made.store.read_yaml("experiment.yaml")
    made.store.write_yaml("experiment.yaml", content | {"raybal": "9.9.9"})
    words = report(made).words
    assert "store last started with raybal 9.9.9" in words
    assert "All settings that the store was last started with" in words
    assert "begun with" not in words


def test_no_two_things_share_a_name():
    inside, outside = set(), set()
    for path in (ROOT / "raybal").rglob("*.py"):
        found = re.findall(r"^(?:class (?=\w)|(?=PHASES = ))(\w+)", path.read_text(), re.M)
        (inside if path.parent.name == "report" else outside).update(found)
    assert {"RoundRecord", "Round", "PHASES"} <= inside | outside
    assert not inside & outside


def test_a_store_that_is_no_local_folder(tmp_path):
    made = MadeStore(Bucket(), make_pool(tmp_path / "pool"))
    assert not made.store.is_local
    for number in range(2):
        made.round(number)
    contents = []
    for _ in range(2):
        assert write_report(made.store, made.pool, sidecar_of(made.pool)) == "mock:///bucket/experiment/report.html"
        contents.append(made.store.read_bytes("report.html"))
        assert made.store.names("tensorboard") == ["round-000", "round-001", "rounds"]
    assert "Labels asked for 8 of 12 in 2 rounds" in Page(contents[0]).words
    assert contents[0] == contents[1]


def test_the_same_store_gives_the_same_bytes_and_importing_is_light(made):
    write_report(made.store, made.pool, sidecar_of(made.pool))
    here = hashlib.sha256(made.store.read_bytes("report.html")).hexdigest()
    code = f"""
import sys, hashlib
from raybal.report.data import read_experiment
from raybal.report.page import render, write_report
heavy = {{"matplotlib", "jinja2", "tensorboard", "PIL", "ray", "torch.utils.tensorboard"}} & set(sys.modules)
assert not heavy, heavy
from raybal.data.pool import Pool, Sidecar
from raybal.store import Store
store = Store({made.store.root!r})
write_report(store, Pool({made.pool.store.root!r}), Sidecar({made.pool.store.root!r}))
assert "ray" not in sys.modules and "matplotlib.pyplot" not in sys.modules
print(hashlib.sha256(store.read_bytes("report.html")).hexdigest())
"""
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == here


def test_a_method_without_a_pace_is_named_alone(tmp_path):
    made = store_in(tmp_path, settings={"balancing": {"method": "joint"}})
    made.round(0, coefficients=False)
    assert "Balancing joint Query strategy" in report(made).words
