from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raybal.data import prepare as driver
from raybal.data.plan import PrepareConfig
from raybal.data.schema import PoolInfo
from raybal.data.shard import make_shard


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PoolInfo]:
    """Prepares a pool with all shards made in this process: prepare(input, output, **options)."""

    def stream(chunks: Any, *work: Any) -> Iterator[Any]:
        for chunk in chunks:
            make_shard(chunk, *work)
            yield chunk

    def run(source: object, output: object, **options: Any) -> PoolInfo:
        return driver.prepare(PrepareConfig(input=str(source), output=str(output), **options))

    monkeypatch.setattr(driver, "_stream", stream)
    return run
