"""What tests on a cluster share: input, and jobs that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

JOBS = Path(__file__).parents[1] / "jobs"


def feature_table(count: int, *, labels: bool = True, seed: int = 0) -> pa.Table:
    """Items of two feature modalities whose four classes can be learnt, in groups of three."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 4, count)

    def feature(noise: float) -> pa.Array:
        values = np.eye(4)[label].repeat(2, 1) + noise * generator.normal(size=(count, 8))
        return pa.array(list(values.astype(np.float32)))

    columns = {
        "id": [f"item-{i:04d}" for i in range(count)],
        "group": [f"group-{i // 3}" for i in range(count)],
        "easy": feature(0.4),
        "hard": feature(0.9),
    }
    if labels:
        columns["label"] = [f"class-{k}" for k in label]
    return pa.table(columns)


def run_job(job: str, arguments: Sequence[str], reached: Callable[[], bool] | None = None) -> str:
    """Runs a job on the cluster of all tests, which outlives its driver.

    Args:
        job: file name.
        arguments: of its command line.
        reached: the driver is killed as soon as this is true; None lets it end.

    Returns:
        What it printed.
    """
    import ray

    command = [sys.executable, str(JOBS / job), *arguments]
    address = ray.get_runtime_context().gcs_address
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": address}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        printed: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: printed.extend(process.stdout))
        reader.start()
        deadline = time.monotonic() + 120
        pause = threading.Event()
        while process.poll() is None and not pause.wait(0.002):
            if reached is not None and reached():
                process.send_signal(signal.SIGKILL)
                break
            assert time.monotonic() < deadline, "".join(printed)
        process.wait()
        reader.join(timeout=30)
    expected = 0 if reached is None else -signal.SIGKILL
    assert process.returncode == expected, "".join(printed)
    return "".join(printed)
