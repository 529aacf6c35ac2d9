from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One local Ray cluster for all tests."""
    import ray

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    ray.init(
        "local",
        num_cpus=4,
        object_store_memory=200 * 2**20,
        include_dashboard=True,
        dashboard_port=port,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


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


@pytest.fixture(scope="session")
def feature_pool(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared pool of 600 items of features in 10 shards."""
    from raybal.data.prepare import PrepareConfig, prepare

    folder = tmp_path_factory.mktemp("features")
    pq.write_table(feature_table(600), folder / "input.parquet")
    prepare(PrepareConfig(input=str(folder / "input.parquet"), output=str(folder / "pool")))
    return folder / "pool"
