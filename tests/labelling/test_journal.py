"""The label journal: nothing said twice, the first answer stands, conflicts wait for a resolution."""

from __future__ import annotations

import hashlib
import itertools

import pandas as pd
import pytest

from raybal.labelling.journal import FOLDER, Answer, Journal
from raybal.store import Store


@pytest.fixture
def journal(tmp_path):
    return Journal(Store(tmp_path))


def answer(item, label, source="a"):
    return Answer(item, label, source)


def resolution(item, label):
    return Answer(item, label, "conflicts.csv", "resolution")


def files(journal):
    """The content of every batch, by name."""
    return {name: journal.store.read_bytes(f"{FOLDER}/{name}") for name in journal.store.names(FOLDER)}


def test_an_empty_journal(journal):
    labels = journal.read()
    assert (labels.label, labels.conflicts, labels.known) == ({}, {}, {})
    assert journal.answers() == journal.add([]) == []
    assert files(journal) == {}


def test_answers_come_back_in_the_order_in_which_they_were_given(journal):
    batches = [[answer("z", "cat"), answer("a", "dog")], [answer("m", None)], [answer("b", "cat"), answer("0", "007")]]
    for batch in batches:
        assert journal.add(batch) == batch
    given = list(itertools.chain(*batches))
    assert journal.answers() == given
    assert list(journal.read().label.items()) == [(a.id, a.label) for a in given]
    # Also by another process, and in more batches than there are digits in one.
    for k in range(12):
        journal.add([answer(f"later{k:02d}", "cat")])
    again = Journal(Store(journal.store.root)).answers()
    assert [a.id for a in again[5:]] == [f"later{k:02d}" for k in range(12)]


def test_the_same_answer_twice_changes_nothing(journal):
    batch = [answer("x", "cat"), answer("y", None), answer("z", "007")]
    journal.add(batch)
    before = files(journal)
    assert journal.add(batch) == []
    assert journal.add([answer("x", "cat", "another sheet")]) == []
    assert journal.add(iter(batch[1:])) == []
    assert files(journal) == before
    # Nor within one batch.
    assert journal.add([answer("n", "cat"), answer("n", "cat", "b"), answer("x", "cat")]) == [answer("n", "cat")]


def test_a_batch_is_never_changed(journal):
    for k in range(5):
        before = files(journal)
        journal.add([answer("x", f"class {k}")])
        after = files(journal)
        assert len(after) == k + 1
        assert before.items() <= after.items()
        assert max(after) not in before


def test_equal_batches_have_equal_names(journal, tmp_path):
    batch = [answer("x", "cat"), answer("y", None)]
    other = Journal(Store(tmp_path / "other"))
    journal.add(batch)
    other.add(batch)
    assert files(journal) == files(other)
    third = Journal(Store(tmp_path / "third"))
    third.add(batch[::-1])
    assert files(third).keys() != files(other).keys()


def test_a_batch_is_a_table_that_others_read(journal, tmp_path):
    journal.add([answer("007", "cat"), answer("y", None)])
    (name,) = files(journal)
    frame = pd.read_parquet(tmp_path / FOLDER / name)
    assert frame["id"].tolist() == ["007", "y"]
    assert frame["label"].isna().tolist() == [False, True]
    assert frame["kind"].tolist() == ["answer", "answer"]


def test_cannot_label_is_an_answer(journal):
    journal.add([answer("x", None), answer("y", "cat")])
    labels = journal.read()
    assert labels.label == {"x": None, "y": "cat"}
    assert labels.known == {"y": "cat"}
    assert labels.conflicts == {}


def test_the_first_of_two_answers_stands_and_both_are_kept(journal):
    given = [answer("x", "cat", "r0"), answer("x", "dog", "r1"), answer("y", "cat", "r1")]
    journal.add(given[:1])
    assert journal.add(given[1:]) == given[1:]
    labels = journal.read()
    assert labels.label == {"x": "cat", "y": "cat"}
    assert labels.conflicts == {"x": given[:2]}


@pytest.mark.parametrize("labels", [("cat", None), (None, "cat")])
def test_an_answer_and_cannot_label_conflict(journal, labels):
    journal.add([answer("x", labels[0]), answer("x", labels[1])])
    assert journal.read().label == {"x": labels[0]}
    assert list(journal.read().conflicts) == ["x"]


@pytest.mark.parametrize("label", ["cat", "dog", "owl", None])
def test_a_resolution_settles_a_conflict(journal, label):
    journal.add([answer("x", "cat"), answer("x", "dog", "b")])
    assert journal.add([resolution("x", label)]) == [resolution("x", label)]
    assert journal.read().label == {"x": label}
    assert journal.read().conflicts == {}
    # All that was said before stays said.
    assert journal.add([answer("x", "cat"), answer("x", "dog", "b"), resolution("x", label)]) == []
    assert journal.read().conflicts == {}


def test_a_resolution_back_and_forth(journal):
    journal.add([answer("x", "cat"), answer("x", "dog")])
    for label in ("cat", "dog", "cat", "cat", None, "dog", None, "cat"):
        journal.add([resolution("x", label)])
        assert journal.read().label == {"x": label}
        assert journal.read().conflicts == {}
    assert [a.label for a in journal.answers()[2:]] == ["cat", "dog", "cat", None, "dog", None, "cat"]


def test_a_new_answer_after_a_resolution_is_a_new_conflict(journal):
    journal.add([answer("x", "cat"), answer("x", "dog")])
    journal.add([resolution("x", "dog")])
    assert journal.add([answer("x", "owl")]) == [answer("x", "owl")]
    assert journal.read().label == {"x": "dog"}
    assert [a.label for a in journal.read().conflicts["x"]] == ["cat", "dog", "dog", "owl"]
    # The same resolution once more settles it.
    assert journal.add([resolution("x", "dog")]) == [resolution("x", "dog")]
    assert journal.read().conflicts == {}
    assert journal.add([answer("x", "owl"), resolution("x", "dog")]) == []


def test_an_annotator_who_comes_back_to_an_earlier_answer_is_heard(journal):
    journal.add([answer("x", "cat")])
    journal.add([answer("x", "dog")])
    journal.add([resolution("x", "dog")])
    assert journal.add([answer("x", "cat")]) == [answer("x", "cat")]
    assert list(journal.read().conflicts) == ["x"]
    assert journal.add([answer("x", "cat")]) == []


def test_a_resolution_without_a_conflict_corrects_a_label(journal):
    journal.add([answer("x", "cat")])
    assert journal.add([resolution("x", "cat")]) == []
    journal.add([resolution("x", "dog")])
    assert journal.read().label == {"x": "dog"}
    assert journal.read().conflicts == {}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_giving_everything_again_in_any_order_changes_nothing(journal, order):
    given = [answer("x", "cat"), answer("y", "dog"), answer("x", "dog", "b"), answer("z", None)]
    journal.add(given)
    before = (files(journal), journal.read())
    for k in order:
        assert journal.add([given[k]]) == []
    assert (files(journal), journal.read()) == before


def test_names_are_of_the_content(journal):
    journal.add([answer("x", "cat")])
    (name,) = files(journal)
    number, _, digest = name.removesuffix(".parquet").partition("-")
    assert number == "000001"
    assert digest == hashlib.blake2b(b"[('x', 'cat', 'a', 'answer')]", digest_size=8).hexdigest()
