from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

# Small tensors: more threads only get in each other's way, and results must not depend on how many there are.
torch.set_num_threads(1)


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
