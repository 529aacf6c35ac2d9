"""Kinetics-Sounds: the clips of Kinetics-400 of those classes of actions that can be both heard and seen.

Arandjelovic and Zisserman, "Look, Listen and Learn", ICCV 2017, on Kay et al., "The Kinetics Human Action Video
Dataset", 2017: clips of ten seconds from YouTube.

    annotations/train.csv, val.csv, test.csv        label,youtube_id,time_start,time_end,split
    train/<class>/<youtube_id>_<start>_<end>.mp4    six digits each; with or without the folders of classes
    replacement/...                                 clips that are damaged in train, whole

Any CSV with these columns is a list. Without one, `<split>/<class>/` says what a clip is, and clips that are gone are
not noticed. Lists without labels, which some copies have for test, are of no use.

The 34 classes of the paper are of a Kinetics before its release. In Kinetics-400, 31 of them are left, some under
another name (blowing out candles, dribbling basketball, mowing lawn, stomping grapes): they are what papers on
balancing use (Peng et al., CVPR 2022). Others add strumming guitar (Sarkar and Etemad, AAAI 2023): 32.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Literal

from raybal.data.layouts.base import Clip, Layout, LayoutSettings
from raybal.data.layouts.tree import Tree
from raybal.errors import DataError
from raybal.settings import setting

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
CLASSES = (
    "blowing nose",
    "blowing out candles",
    "bowling",
    "chopping wood",
    "dribbling basketball",
    "laughing",
    "mowing lawn",
    "playing accordion",
    "playing bagpipes",
    "playing bass guitar",
    "playing clarinet",
    "playing drums",
    "playing guitar",
    "playing harmonica",
    "playing keyboard",
    "playing organ",
    "playing piano",
    "playing saxophone",
    "playing trombone",
    "playing trumpet",
    "playing violin",
    "playing xylophone",
    "ripping paper",
    "shoveling snow",
    "shuffling cards",
    "singing",
    "stomping grapes",
    "tap dancing",
    "tapping guitar",
    "tapping pen",
    "tickling",
)
_PARTS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
# What follows the YouTube id, which may have any of these characters itself.
_TIMES = len("_000000_000010")


@dataclass(frozen=True)
class KineticsSoundsSettings(LayoutSettings):
    """The classes and splits of Kinetics-Sounds."""

    name: str | None = setting("kinetics_sounds", help="data set")
    classes: Literal[31, 32] = setting(31, help="number of classes; 32: with strumming guitar")
    split: Literal["official", "val-as-test", "own"] = setting(
        "official",
        help="official: train, val and test of Kinetics-400; val-as-test: its val to test on, and its test left out; "
        "own: raybal splits by the YouTube video",
    )


class KineticsSounds(Layout):
    """Kinetics-Sounds, with the class names of Kinetics-400."""

    name = "kinetics_sounds"
    title = "Kinetics-Sounds"
    Settings = KineticsSoundsSettings
    settings: KineticsSoundsSettings

    def clips(self, folder: Tree, lists: Tree) -> list[Clip]:
        files = folder.media(".mp4", "train/<class>/<youtube_id>_<start>_<end>.mp4")
        named = _of_lists(lists)
        if not named and lists is not folder:
            raise lists.unlike(f"CSV file with the columns {','.join(COLUMNS)}")
        named = named or _of_folders(files)
        wanted = {*CLASSES, *(["strumming guitar"] if self.settings.classes == 32 else [])}
        clips = []
        for name, (label, part) in named.items():
            if label not in wanted or (self.settings.split == "val-as-test" and part == "test"):
                continue
            clips.append(Clip(name, {"uri": files.get(name)}, label, name[:-_TIMES], self._split(part)))
        return clips

    def _split(self, part: str) -> str | None:
        if self.settings.split == "own":
            return None
        return "test" if self.settings.split == "val-as-test" and part == "val" else part


def _of_lists(lists: Tree) -> dict[str, tuple[str, str]]:
    """Returns (label, split) of each clip that a list names."""
    named = {}
    for path in lists.names:
        if not path.endswith(".csv"):
            continue
        rows = csv.DictReader(lists.read(path))
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            continue
        for row in rows:
            if None in [row[column] for column in COLUMNS]:
                raise DataError(f"{lists.store.path(path)}: a line for {row['youtube_id']!r} is cut short")
            name = f"{row['youtube_id']}_{row['time_start'].zfill(6)}_{row['time_end'].zfill(6)}"
            named[name] = row["label"], _PARTS.get(row["split"], row["split"])
    return named


def _of_folders(files: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Returns (label, split) of each clip by the two folders that it is in."""
    named = {}
    for name, path in files.items():
        part, label = ["", "", *path.split("/")][-3:-1]
        if part in _PARTS:
            named[name] = label.replace("_", " "), _PARTS[part]
    return named
