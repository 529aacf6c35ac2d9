"""What a prepared pool is: its modalities, classes and how it was made (`pool.yaml`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from raybal.errors import ConfigError, DataError, StoreError
from raybal.settings import from_plain
from raybal.store import Store

FORMAT = 1
# What a preparation that goes on keeps: records of the shards that are made, and what it found damaged.
STAGING = "staging"


def tables(generation: int) -> str:
    """Returns the folder of a generation's tables."""
    return f"tables/{generation:04d}"


@dataclass(frozen=True)
class Modality:
    """One modality of a pool.

    Attributes:
        name: the word used everywhere, e.g. "audio".
        kind: audio (log spectrogram [1, bands, frames]), video (uint8 [T, C, H, W]), image (uint8 [C, H, W]),
            sequence ([T, d]) or features ([d]).
        shape: of one item's tensor.
        dtype: numpy dtype in which it is stored.
        mean, std: what models standardise with, from the training split: one number for audio, one a channel
            for video and image, one a dimension for sequence and features.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def statistics_shape(self) -> tuple[int, ...]:
        """Returns the shape in which mean and std broadcast over one item's tensor."""
        if self.kind in ("video", "image"):
            return (len(self.mean), 1, 1)
        return (len(self.mean),)


@dataclass(frozen=True)
class PoolInfo:
    """The content of `pool.yaml`.

    Attributes:
        modalities: in the order in which everything else lists them.
        classes: class names in the order of the class index; None if not known yet.
        preprocessing: all parameters that shaped the tensors.
        preprocessing_hash: a hash of them.
        content_hash: a hash of every item's id, split and tensors; it never depends on a label.
        splitting: shares and seed of the split, where the input had none.
        counts: items by split, quarantined items, items missing each modality.
        generation: which tables are the pool's. Adding items writes new ones, and pool.yaml then points to them, so
            that whoever reads meanwhile sees the old pool or the new one.
    """

    modalities: tuple[Modality, ...]
    classes: tuple[str, ...] | None
    preprocessing: dict[str, Any]
    preprocessing_hash: str
    content_hash: str
    splitting: dict[str, Any] = dataclasses.field(default_factory=dict)
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    generation: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities' names."""
        return tuple(m.name for m in self.modalities)

    @property
    def index(self) -> str:
        """The name of the index: id, shard, row, split, presence and content hash of every item."""
        return f"{tables(self.generation)}/index.parquet"

    def sidecar(self, table: str) -> str:
        """Returns the name of a sidecar table: labels, groups or sources."""
        return f"{tables(self.generation)}/sidecar/{table}.parquet"

    def write(self, store: Store) -> None:
        """Writes `pool.yaml`."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        content["modalities"] = [
            {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(m).items()}
            for m in self.modalities
        ]
        content["classes"] = None if self.classes is None else list(self.classes)
        store.write_yaml("pool.yaml", content)

    @classmethod
    def read(cls, store: Store) -> PoolInfo:
        """Reads `pool.yaml`.

        Raises:
            DataError: there is no pool here, or it was written in another format.
        """
        if not store.exists("pool.yaml"):
            raise DataError(
                f"{store.root} is not a prepared pool (it has no pool.yaml); make one with "
                f"`python jobs/prepare.py --input YOUR_MANIFEST_OR_PARQUET --output {store.root}`"
            )
        path, content = store.path("pool.yaml"), store.read_yaml("pool.yaml")
        if not isinstance(content, dict) or "format" not in content:
            raise StoreError(f"{path} is not a pool description")
        if content.pop("format") != FORMAT:
            raise DataError(f"{path} was written by another version of raybal; prepare the pool into another folder")
        try:
            return from_plain(cls, content)
        except ConfigError as error:
            raise StoreError(f"{path} is damaged: {error}; prepare the pool into another folder") from error
