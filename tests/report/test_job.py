"""jobs/report.py: where the report is, or one clear error."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from report_tools import MadeStore

JOB = Path(__file__).parents[2] / "jobs" / "report.py"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the job on a store; returns its exit code, what it printed, and its error lines."""

    def job(store):
        monkeypatch.setattr(sys, "argv", ["report.py", "--store", str(store)])
        code = 0
        try:
            runpy.run_path(str(JOB), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err.splitlines()

    return job


def test_it_says_where_the_report_is(run, made):
    code, out, errors = run(made.store.root)
    assert (code, errors) == (0, [])
    assert out == f"report: {made.store.path('report.html')}\n"
    assert made.store.exists("report.html")


def changed(made: MadeStore, **keys: object) -> None:
    made.store.write_yaml("experiment.yaml", made.store.read_yaml("experiment.yaml") | keys)


DAMAGE = {
    "another format": (lambda made: changed(made, format=7), "format 7"),
    "no settings": (lambda made: changed(made, settings=None), "settings are missing"),
    "no pool": (lambda made: changed(made, settings={"seed": 1}), "name no pool"),
    "no such pool": (
        lambda made: changed(made, settings={"pool": "/nowhere/pool"}),
        "/nowhere/pool is not a prepared pool",
    ),
    "a list": (lambda made: made.store.write_yaml("experiment.yaml", [1]), "damaged"),
    "empty": (lambda made: made.store.write_bytes("experiment.yaml", b""), "damaged"),
    "no yaml": (lambda made: made.store.write_bytes("experiment.yaml", b"a: ["), "not readable YAML"),
    "no text": (lambda made: made.store.write_bytes("experiment.yaml", b"\x80\xff\x00"), "experiment.yaml"),
    "gone": (lambda made: made.store.delete("experiment.yaml"), "is not the store of an experiment"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_store_is_one_error(run, made, damage):
    spoil, words = DAMAGE[damage]
    spoil(made)
    code, out, errors = run(made.store.root)
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert not made.store.exists("report.html")


def test_a_place_that_is_empty_or_not_there_is_one_error(run, tmp_path):
    code, _, errors = run(tmp_path / "nothing")
    assert (code, errors) == (2, [f"error: {tmp_path / 'nothing'} is not a store: it has no experiment.yaml"])
    assert not (tmp_path / "nothing").exists()
