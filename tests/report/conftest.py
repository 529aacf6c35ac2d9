from __future__ import annotations

from pathlib import Path

import pytest
from report_tools import MadeStore, make_pool

from raybal.store import Store


@pytest.fixture
def made(tmp_path: Path) -> MadeStore:
    """A finished store of three rounds of a video and audio pool."""
    store = MadeStore(Store(tmp_path / "store"), make_pool(tmp_path / "pool"))
    for number in range(3):
        store.round(number)
    return store
