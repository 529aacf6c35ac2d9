from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# Small tensors: more threads only get in each other's way, and results must not depend on how many there are.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _threads_are_left_as_they_were() -> Iterator[None]:
    """The last bits of a sum depend on the number of threads: a test that changed it would change those after it."""
    yield
    left, _ = torch.get_num_threads(), torch.set_num_threads(1)
    assert left == 1, f"the test left torch with {left} threads"


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], dict[str, np.ndarray]]:
    """Loads recorded inputs and outputs of the published methods (tests/vectors)."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(Path(__file__).parent / "vectors" / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return load


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real audiovisual data that RAYBAL_DATA names."""
    folder = os.environ.get("RAYBAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RAYBAL_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], str]]:
    """Returns a function that makes the root of a new store in a bucket, on a server of this machine."""
    import pyarrow.fs as pafs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    pafs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        endpoint_override=address,
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    ).create_dir("bucket")
    options = f"endpoint_override={address}&scheme=http&region=us-east-1"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield lambda bucket="bucket": f"s3://{bucket}/experiments/{uuid.uuid4().hex}?{options}"
    server.stop()


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


@pytest.fixture(scope="session")
def feature_pool(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared pool of 600 items of features in 10 shards."""
    import pyarrow.parquet as pq
    from ray_tools import feature_table

    from raybal.data.plan import PrepareConfig
    from raybal.data.prepare import prepare

    folder = tmp_path_factory.mktemp("features")
    pq.write_table(feature_table(600), folder / "input.parquet")
    prepare(PrepareConfig(input=str(folder / "input.parquet"), output=str(folder / "pool")))
    return folder / "pool"
