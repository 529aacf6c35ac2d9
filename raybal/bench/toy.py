"""A pool of random clips, prepared: what training and scoring are measured on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raybal.columns import tensor_column, tensor_field
from raybal.data.publish import write_tables
from raybal.data.schema import Modality, PoolInfo
from raybal.store import Store

VIDEO = Modality("video", "video", (8, 1, 48, 48), "uint8", (128.0,), (64.0,))
AUDIO = Modality("audio", "audio", (1, 64, 100), "float16", (-2.0,), (3.0,))


def make_pool(root: str, items: int, shards: int = 16, classes: int = 10) -> None:
    """Writes a prepared pool of random items, all in the training split, with labels."""
    store, generator = Store(root), np.random.default_rng(0)
    names, rows, shard_of = [], [], []
    for number, part in enumerate(np.array_split(np.arange(items), shards)):
        video = generator.integers(0, 256, (len(part), *VIDEO.shape), dtype=np.uint8)
        audio = generator.normal(-2, 3, (len(part), *AUDIO.shape)).astype(np.float16)
        ids = [f"item-{i:07d}" for i in part]
        fields = [pa.field("id", pa.string())] + [tensor_field(m.name, m.shape, m.dtype) for m in (VIDEO, AUDIO)]
        columns = [pa.array(ids), tensor_column(video), tensor_column(audio)]
        shard = f"{number:04d}"
        store.write_table(f"shards/{shard}.parquet", pa.Table.from_arrays(columns, schema=pa.schema(fields)), "none")
        names += ids
        rows += list(range(len(part)))
        shard_of += [shard] * len(part)
    everywhere = np.ones(items, bool)
    index = {"id": names, "shard": shard_of, "row": pa.array(rows, pa.int32()), "split": ["train"] * items}
    labels = pa.table({"id": names, "label": [str(k) for k in generator.integers(0, classes, items)]})
    none = pa.array([], pa.string())
    sidecars = {
        "labels": labels,
        "groups": pa.table({"id": none, "group": none}),
        "sources": pa.table({"id": none, "uri": none, "fingerprint": none}),
    }
    info = PoolInfo((VIDEO, AUDIO), tuple(str(k) for k in range(classes)), {}, "bench", "bench")
    write_tables(store, info, pa.table(index | {"present_video": everywhere, "present_audio": everywhere}), sidecars)
