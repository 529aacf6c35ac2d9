"""The report as a file: its numbers, its states, and that nothing in it is fetched or run."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys

import pytest
from report_tools import AUDIO, OMICS, VIDEO, MadeStore, Page, make_pool, sidecar_of

from raybal.labelling.journal import Answer, Journal
from raybal.report.data import read_experiment
from raybal.report.page import render, write_report
from raybal.store import Store


def report(made) -> Page:
    return Page(text(made))


def text(made) -> str:
    return render(read_experiment(made.store), made.store, made.pool, sidecar_of(made.pool))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished store of three rounds, and its page; for tests that change neither."""
    made = store_in(tmp_path_factory.mktemp("finished"))
    for number in range(3):
        made.round(number)
    return made, report(made)


class Bucket(Store):
    """A store in memory that is reached as an object store is."""

    def __init__(self) -> None:
        super().__init__("mock:///bucket/experiment")

    def write_bytes(self, name, content):
        self.filesystem.create_dir(self.path(name).rpartition("/")[0], recursive=True)
        super().write_bytes(name, content)


def store_in(tmp_path, modalities=(VIDEO, AUDIO), *, settings=None, classes=None, **pool):
    made_pool = make_pool(tmp_path / "pool", modalities, **pool)
    return MadeStore(
        Store(tmp_path / "store"), made_pool, **({"classes": classes} if classes else {}), **(settings or {})
    )


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


def test_the_newest_accuracy_and_the_budget_lead(finished):
    made, page = finished
    words = page.words
    test = made.facts[2, "evaluate"]["test"]
    assert "Labels asked for 12 of 12 in 3 rounds" in words
    for head in ("fused", "video", "audio"):
        assert f"{head} {100 * test[head]['accuracy']:.1f}%" in words
    assert "Finished The label budget is spent." in words
    assert "mlb, constant pace" in words
    assert "bmmal, 4 items a round" in words


def test_the_time_table_adds_up(finished):
    made, page = finished
    (table,) = [t for t in page.tables if "score" in t[0]]
    for phase, cell in zip(("score", "select", "ask", "train", "evaluate"), table[-1][1:], strict=False):
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


HOSTILE = "<script>alert(1)</script>"


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
    for text in (HOSTILE, quote, "a&b", "</title>", "{{ 7 * 7 }}", "<b>m&m</b>", "</table>"):
        assert text in page.words
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


def assert_nothing_is_fetched(page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action", "background"):
                assert value.startswith("#" if name == "href" else "data:image/"), (tag, name, value)
            if name == "style" or "url(" in value:
                assert not re.search(r"url\((?!#)", value), (tag, value)
    assert "@import" not in page.styles
    assert "url(" not in page.styles
    assert "http" not in page.styles


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


def test_waiting_for_labels(tmp_path):
    made = store_in(tmp_path, test=0, classes=("cat", "dog"), settings={"labelling": {"labeller": "table"}})
    ids = made.query(0)
    made.store.write_bytes("sheets/round-000.csv", b"id,uri,label\n")
    Journal(made.store).add([Answer(ids[0], "cat", "round-000.csv"), Answer(ids[1], None, "round-000.csv")])
    page = report(made)
    words = page.words
    assert "Waiting for labels 2 of the 4 items of round 0 have no answer yet." in words
    assert made.store.path("sheets/round-000.csv") in words
    assert "Test accuracy is unknown: no model has been trained yet." in words
    (table,) = [t for t in page.tables if "No answer" in t[0]]
    assert table[1] == ["0", "4", "1", "1", "2", "0", "round-000.csv"]
    assert "cannot be labelled" in words
    assert "not answered yet" in words


@pytest.mark.parametrize(("phase", "following"), [("select", "ask"), ("ask", "train"), ("train", "evaluate")])
def test_a_round_that_stopped_part_way(tmp_path, phase, following):
    made = store_in(tmp_path)
    made.round(0)
    ids = made.query(1)
    if phase != "select":
        made.answer(1, ids)
    if phase == "train":
        made.train(1)
    done = {"select": 2, "ask": 3, "train": 4}[phase]
    assert f"In progress Round 1: {done} of 5 phases are finished; the next is {following}." in report(made).words


def test_a_query_without_its_marker_is_not_there(made):
    made.query(3, marker=False)
    assert "Labels asked for 12 of 12 in 4 rounds" in report(made).words


def test_a_larger_budget_than_at_the_beginning(made):
    made.round(3)
    assert "Labels asked for 16 of 16" in report(made).words


def test_an_empty_store(tmp_path):
    pool = make_pool(tmp_path / "pool", classes=None, test=0)
    store = Store(tmp_path / "store")
    assert write_report(store, pool, sidecar_of(pool)) == store.path("report.html")
    page = Page(store.read_bytes("report.html"))
    assert "Just begun No round has begun yet." in page.words
    assert "Test accuracy is unknown: no model has been trained yet." in page.words
    assert_nothing_is_fetched(page)


def test_no_test_split_and_no_validation(tmp_path):
    made = store_in(tmp_path, OMICS, test=0)
    made.round(0, None, validation=False, coefficients=False)
    made.round(1, None, validation=False, coefficients=False)
    words = report(made).words
    assert "Test accuracy is unknown: the pool has no test split." in words
    assert "Whether a modality is being starved cannot be told" in words
    assert "There was no validation set" in words
    assert "does not scale gradients" in words
    assert "%" not in words.split("Test accuracy")[1].split("Is a modality")[0]


def test_one_modality(tmp_path):
    made = store_in(tmp_path, (VIDEO,))
    made.round(0)
    made.round(1)
    page = report(made)
    assert "There is one modality, video, so none can be starved by another." in page.words
    assert "Nothing to show yet: the pool has one modality." in page.words


def test_missing_modalities_and_a_head_without_items(tmp_path):
    made = store_in(tmp_path, absent={"audio": [f"item-{i:03d}" for i in range(30)]})
    test = made.metrics(10) | {"audio": None}
    made.round(0, test)
    page = report(made)
    assert "30 items lack it" in page.words
    assert re.search("audio . no test item has it", page.words)
    assert "no audio" in page.words


def test_quarantine_is_counted_by_reason_and_cut(tmp_path):
    rows = [(f"bad-{i:03d}", f"clips/{i}.mp4", "video", "no frames" if i % 3 else "cannot be read") for i in range(60)]
    page = report(store_in(tmp_path, quarantine=rows))
    reasons, table = [t for t in page.tables if "Reason" in t[0]]
    assert reasons[1:] == [["no frames", "video", "40"], ["cannot be read", "video", "20"]]
    assert [row[0] for row in table[1:]] == [f"bad-{i:03d}" for i in range(50)]
    assert "The first 50 items" in page.words


def test_keys_in_uris_are_left_out(tmp_path):
    made = store_in(
        tmp_path, settings={"place": "s3://KEY:SECRET@bucket/x"}, uris={"item-000": "s3://KEY:SECRET@clips/1"}
    )
    made.round(0)
    content = text(made)
    assert "SECRET" not in content
    assert "s3://bucket/x" in content
    assert "s3://clips/1" in content


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
