"""Input for tests on a cluster."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


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
