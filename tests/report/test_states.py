"""Reports of stores in every state: empty, part way, without labels, without a model, small and large."""

from __future__ import annotations

import re

import pytest
from report_tools import (
    HOSTILE,
    OMICS,
    VIDEO,
    Page,
    assert_nothing_is_fetched,
    make_pool,
    report,
    sidecar_of,
    store_in,
    text,
)

from raybal.labelling.journal import Answer, Journal
from raybal.report.data import read_experiment
from raybal.report.lines import contribution_lines
from raybal.report.page import write_report
from raybal.store import Store


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
    done = {"select": 2, "ask": 4, "train": 5}[phase]
    assert f"In progress Round 1: {done} of 6 phases are finished; the next is {following}." in report(made).words


def test_a_query_without_its_marker_is_not_there(made):
    made.query(3, marker=False)
    assert "Labels asked for 12 of 12 in 4 rounds" in report(made).words


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


def test_what_a_file_manager_leaves_behind_stops_nothing(made):
    made.store.write_bytes("rounds/.DS_Store", b"")
    made.store.write_bytes("rounds/notes/mine.txt", b"")
    assert "Labels asked for 12 of 12 in 3 rounds" in report(made).words


def test_rounds_without_a_model(tmp_path):
    made = store_in(tmp_path, settings={"labelling": {"labeller": "table"}, "label_budget": 16})
    made.round_without_labels(0)
    page = report(made)
    nothing = (
        "Round 0 has no model: none of the items asked for by then could be labelled, so nothing could be trained on. "
        "Queries are chosen at random until there is a model."
    )
    assert nothing in page.words
    assert "Test accuracy is unknown: there is no label that a model could be trained on." in page.words
    assert "In progress Round 0 is finished; round 1 comes next." in page.words
    assert "No item has a label yet." in page.words
    (table,) = [t for t in page.tables if "No answer" in t[0]]
    assert table[1][1:5] == ["4", "0", "4", "0"]
    assert_nothing_is_fetched(page)
    # A query at random, then two that were chosen with a model.
    made.round_without_labels(1)
    made.round(2, contribution={"validation": None, "test": [0.5, 0.5]})
    made.query(3)
    page = report(made)
    assert nothing.replace("Round 0 has", "Rounds 0, 1 have") in page.words
    assert "the model of round 2 predicted" in page.words
    (table,) = [t for t in page.tables if "Balanced accuracy" in t[0]]
    assert [row[0] for row in table[2:]] == ["2"]
    (query, _, own, *_) = contribution_lines(read_experiment(made.store), made.pool.info.names, "contribution")
    assert query.x == own.x == (2,)


def test_a_query_after_a_round_without_a_model_was_chosen_with_an_older_one(made):
    made.round_without_labels(3)
    made.query(4)
    experiment = read_experiment(made.store)
    (query, *_) = contribution_lines(experiment, made.pool.info.names, "contribution")
    # Rounds 1 to 3 asked with the models of 0 to 2, and round 4 again with that of 2.
    assert query.x == (0, 1, 2)
    assert query.y[-1] == pytest.approx(made.shares[4][:, 0].mean())
    assert "the model of round 2 predicted" in report(made).words


@pytest.mark.parametrize("rounds", [0, 1, 100])
def test_any_number_of_rounds(tmp_path, rounds):
    made = store_in(tmp_path, train=410, settings={"label_budget": 400})
    for number in range(rounds):
        made.round(number, contribution={"validation": [0.5, 0.5], "test": [0.5, 0.5]}, epochs=2)
    page = report(made)
    assert f"in {rounds} round{'' if rounds == 1 else 's'}" in page.words
    assert len(text(made)) < 2_000_000
    assert page.words.count("All 100 rounds") == (3 if rounds == 100 else 0)
    assert_nothing_is_fetched(page)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_modalities_and_many_classes_of_hostile_names(tmp_path, count):
    classes = [f"{HOSTILE}{'&' * (k % 50)} {{{{ {k} }}}} $\\alpha_{k}$" for k in range(300)]
    made = store_in(tmp_path, OMICS[:count], classes=classes, train=400, settings={"label_budget": 320})
    even = [1 / count] * count
    for number in range(2):
        made.answer(number, made.query(number, 160))
        made.train(number)
        made.evaluate(number, contribution={"validation": even, "test": even})
    page = report(made)
    assert classes[59] in page.words
    assert "No label yet of 140 of the 300 classes" in page.words
    assert "script" not in {tag for tag, _ in page.tags}
    assert_nothing_is_fetched(page)


def test_tunings_are_shown_with_what_they_changed(tmp_path):
    made = store_in(tmp_path)
    made.round(0)
    old = {"trial": 0, "accuracy": 0.5, "values": {"balancing.alpha": 0.5, "balancing.pace.kind": "constant"}}
    new = {"trial": 3, "accuracy": 0.625, "values": {"balancing.alpha": 2.0, "balancing.pace.kind": "constant"}}
    for number, facts in enumerate(
        [
            {"trials": 7, "epochs": 30, "settings": {}, "before": old, "after": new},
            {"skipped": "tuning has had its share of the time"},
            {"trials": 2, "epochs": 9, "settings": {}, "before": new, "after": new},
        ],
        start=1,
    ):
        made.answer(number, made.query(number), tuning=facts)
        made.train(number)
        made.evaluate(number)
    (table,) = [t for t in report(made).tables if "what changed" in t[0]]
    cells = [[row[k] for k in (0, 1, 2, 4, 5, 6)] for row in table[1:]]
    assert cells == [
        ["1", "7", "30", "50.0%", "62.5%", "alpha 0.5 → 2"],
        ["2", "0", "0", "\u2013", "\u2013", "tuning has had its share of the time"],
        ["3", "2", "9", "62.5%", "62.5%", "nothing was better"],
    ]
    assert "Tuning between rounds" not in report(store_in(tmp_path / "other")).words
