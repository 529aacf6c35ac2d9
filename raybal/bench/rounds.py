"""What a round costs beside training and scoring themselves, and where it goes."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raybal.bench.toy import make_pool
from raybal.config import LoopConfig
from raybal.loop import run_loop
from raybal.rounds import PHASES, rounds_of
from raybal.settings import from_plain
from raybal.store import Store


def bench_rounds(num_workers: int) -> Iterator[tuple[str, float]]:
    """Runs five rounds with almost nothing to train on and to score.

    Yields:
        (what, value): the median seconds of each phase over the rounds after the second (the first has no model to
        score with, the second still starts actors), and their sum.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_pool(f"{folder}/pool", 64, shards=4)
        content: dict[str, Any] = {
            "pool": f"{folder}/pool",
            "store": f"{folder}/store",
            "label_budget": 40,
            "query": {"strategy": "bmmal", "size": 8},
            "balancing": {"method": "mlb"},
            "train": {"epochs": 1, "num_workers": num_workers, "device": "cpu"},
        }
        run_loop(from_plain(LoopConfig, content))
        rounds = rounds_of(Store(str(Path(folder) / "store")))[2:]
        phases = {p: statistics.median([r.facts(p)["seconds"] for r in rounds]) for p in PHASES}
    for phase, seconds in phases.items():
        yield f"{phase} s", seconds
    yield "round s", sum(phases.values())
