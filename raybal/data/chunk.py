"""What a preparation task gets and gives: the parameters, the items of one shard, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raybal.media.audio import AudioSettings
from raybal.media.image import ImageSettings
from raybal.media.video import VideoSettings
from raybal.settings import Settings, setting


@dataclass(frozen=True)
class SequenceSettings(Settings):
    """How precomputed sequences are brought to one length."""

    steps: int | None = setting(
        None,
        ge=1,
        help="steps of a prepared sequence: longer ones are cut, shorter ones filled with zeros; none: the "
        "median of the first items looked at",
    )


@dataclass(frozen=True)
class Preprocessing(Settings):
    """All parameters that shape the tensors."""

    video: VideoSettings = setting(factory=VideoSettings, help="frames")
    audio: AudioSettings = setting(factory=AudioSettings, help="spectrograms")
    image: ImageSettings = setting(factory=ImageSettings, help="still images")
    sequence: SequenceSettings = setting(factory=SequenceSettings, help="precomputed sequences")


@dataclass(frozen=True)
class Chunk:
    """The items of one shard to be made.

    Attributes:
        name: of the shard, a hash of everything that its content depends on but the files' own content.
        ids: in order.
        uris: {column: uri or None of each item}.
        file: Parquet file that holds the media columns, if any, and its size and time.
        rows: rows of the items in that file.
        train: whether each item is in the training split, whose statistics models standardise with.
    """

    name: str
    ids: tuple[str, ...]
    uris: Mapping[str, tuple[str | None, ...]]
    file: str | None
    file_fingerprint: str
    rows: tuple[int, ...]
    train: tuple[bool, ...]


@dataclass
class Converted:
    """What became of a chunk.

    Attributes:
        ids: of the items prepared, in the order of the shard's rows.
        present: bool [n, M].
        contents: a hash of each item's tensors, in the order of ids.
        seconds: each item's length, the longest of its files; None where it has no sound and no video.
        fingerprints: what each item was prepared from, see `raybal.data.files.fingerprint_of`.
        bad: (id, uri, modality, reason, fingerprint of the files) of the items that could not be.
        sums: {m: ([count], sums, sums of squares)} over the training items, per channel or dimension, float64.
        unused: {track: number of clips that have one, and it is no modality of the pool}.
    """

    ids: list[str] = field(default_factory=list)
    present: list[list[bool]] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    bad: list[tuple[str, ...]] = field(default_factory=list)
    sums: dict[str, tuple[list[float], ...]] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
