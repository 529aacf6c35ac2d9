"""kill -9 of the driver at the worst moments; the same command goes on and ends with the same result."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray_tools import JOBS, feature_table, run_job

from raybal.config import LoopConfig, parse
from raybal.data.plan import PrepareConfig
from raybal.data.prepare import prepare
from raybal.loop import run_loop
from raybal.rounds import rounds_of
from raybal.store import Store

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    pq.write_table(feature_table(3000), folder / "input.parquet")
    prepare(PrepareConfig(input=str(folder / "input.parquet"), output=str(folder / "pool")))
    return folder / "pool"


def arguments(pool: Path, store: Path) -> list[str]:
    # One proposal a block makes selection slow enough to be caught in the middle.
    options = {
        "pool": pool,
        "store": store,
        "label-budget": 120,
        "query.size": 40,
        "query.proposals": 1,
        "train.epochs": 12,
        "train.device": "cpu",
        "model.encoder.dim": 8,
    }
    return [text for key, value in options.items() for text in (f"--{key}", str(value))]


def run_until(pool: Path, store: Path, reached: Callable[[], bool] | None) -> str:
    return run_job("al_loop.py", arguments(pool, store), reached)


def test_killed_while_training_scoring_and_selecting(pool, tmp_path):
    undisturbed, store = tmp_path / "undisturbed", tmp_path / "store"
    run_loop(parse(LoopConfig, arguments(pool, undisturbed)))
    scores = store / "rounds" / "002" / "scores"

    run_until(pool, store, lambda: any((store / "rounds/001/train").glob("epoch-0003*")))
    epochs = sorted(p.name for p in (store / "rounds/001/train").glob("epoch-*"))

    # A name with a dot in front is a file that is still being written.
    printed = run_until(pool, store, lambda: any(scores.glob("[!.]*.parquet")))
    assert f"training continues after its checkpointed epoch {int(epochs[-1][6:10])} of 12" in printed
    assert "epoch 1/12" not in printed.split("round 2")[0]
    done = {p.name: p.stat().st_mtime_ns for p in scores.glob("[!.]*.parquet")}
    assert 0 < len(done) < 32, "the kill came too late to show anything"

    printed = run_until(pool, store, lambda: (store / "rounds/002/score.yaml").exists())
    assert not (store / "rounds/002/select.yaml").exists(), "the kill came too late to show anything"
    # An actor may have finished the shard it was at when the driver died.
    found = re.search(r"scoring continues: (\d+) of \d+ shards are done", printed)
    assert found is not None
    assert len(done) <= int(found[1]) <= len(done) + 2
    assert done.items() <= {p.name: p.stat().st_mtime_ns for p in scores.glob("*.parquet")}.items()
    assert not list(store.rglob(".tmp-*"))

    printed = run_until(pool, store, None)
    assert "round 2: score" not in printed
    ours, theirs = Store(str(store)), Store(str(undisturbed))
    assert len(rounds_of(ours)) == 3
    for one, other in zip(rounds_of(ours), rounds_of(theirs), strict=True):
        assert one.query()["id"].to_pylist() == other.query()["id"].to_pylist()
        assert ours.read_bytes(one.model) == theirs.read_bytes(other.model)


def test_a_second_driver_is_refused_while_the_first_is_at_work(pool, tmp_path):
    store = tmp_path / "store"
    refused: list[subprocess.CompletedProcess[str]] = []

    def try_another() -> bool:
        if not (store / "rounds/000/train").exists():
            return False
        command = [sys.executable, str(JOBS / "al_loop.py"), *arguments(pool, store)]
        refused.append(subprocess.run(command, capture_output=True, text=True, timeout=100, check=False))
        return True

    run_until(pool, store, try_another)
    (other,) = refused
    assert other.returncode == 2
    assert "is in use by another driver" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
