"""CREMA-D: 7,442 clips of 91 actors who say twelve sentences in six emotions.

Cao, Cooper, Keutmann, Gur, Nenkova and Verma, "CREMA-D: Crowd-Sourced Emotional Multimodal Actors Dataset", IEEE
Transactions on Affective Computing 5(4), 2014.

As github.com/CheyneyComputerScience/CREMA-D has it (with git-lfs), a clip is <actor>_<sentence>_<emotion>_<level>:

    AudioWAV/1001_DFA_ANG_XX.wav        16 kHz
    VideoFlash/1001_DFA_ANG_XX.flv      about 2.5 s
    AudioMP3, processedResults, ...     not used

and, for the splits that papers use, from their repositories:

    train.csv, test.csv                 <clip>,<emotion>: 6,698 and 744 lines (Peng et al., CVPR 2022)
    data_splits_VALV.pkl                five folds (Kontras et al., BMVC 2024), as JSON in spite of its name:
                                        {"1": {"train": ["<clip>.wav-<n>", ...], "val": [...], "test": [...]}, ...}

A label is the emotion that the actor was asked for, which the clip's name says; the number <n> is another label and is
not used. A group is an actor.

Numbers on `common` and on folds cannot be compared: `common` has all 91 actors on both sides and no validation, so a
model that knows the voice and the face has an advantage. A fold has 63, 14 and 14 actors. Its file leaves out a
fifth of the clips, and its test sets overlap. Where the file is not there, raybal makes folds of its own, of all clips:
the 91 actors in an order by hash, 14 to test on in turn, the next 14 to validate. No actor tests in two of them.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from raybal import hashing
from raybal.data.layouts.base import Clip, Layout, LayoutSettings
from raybal.data.layouts.tree import Tree
from raybal.errors import DataError
from raybal.settings import setting

ACTORS = tuple(str(number) for number in range(1001, 1092))
FOLDS = "data_splits_VALV.pkl"
_HELD_OUT = 14
# One clip of the distribution has a level of one letter.
_CLIP = re.compile(r"(?P<actor>\d{4})_[A-Z]{3}_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_[A-Z]{1,2}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CremaDSettings(LayoutSettings):
    """The splits of CREMA-D."""

    name: str | None = setting("crema_d", help="data set")
    split: Literal["common", "fold-1", "fold-2", "fold-3", "fold-4", "fold-5", "own"] = setting(
        "common",
        help="common: train.csv and test.csv of many papers, with all actors on both sides; fold-1 to fold-5: no actor "
        f"on two sides, by {FOLDS} or, where that is not there, by raybal; own: raybal splits by the actor",
    )


class CremaD(Layout):
    """CREMA-D: the modality video from the Flash file, audio from the WAV file."""

    name = "crema_d"
    title = "CREMA-D"
    Settings = CremaDSettings
    settings: CremaDSettings

    def clips(self, folder: Tree, lists: Tree) -> list[Clip]:
        videos = folder.media(".flv", "VideoFlash/<clip>.flv")
        sounds = folder.media(".wav", "AudioWAV/<clip>.wav")
        clips = []
        for name, part in self._parts(lists, sorted(videos.keys() | sounds.keys())).items():
            found = _CLIP.fullmatch(name)
            if found is None or found["actor"] not in ACTORS:
                raise DataError(f"{lists.store.root}: the lists of CREMA-D name {name!r}, which is none of its clips")
            files = {"video_uri": videos.get(name), "audio_uri": sounds.get(name)}
            clips.append(Clip(name, files, found["emotion"], found["actor"], part))
        return clips

    def _parts(self, lists: Tree, names: Collection[str]) -> Mapping[str, str | None]:
        """Returns the split of each clip.

        Args:
            lists: with the lists.
            names: of the files that are there.
        """
        split = self.settings.split
        if split == "common":
            train, test = (lists.rows(f"{part}.csv", ("clip", "emotion")) for part in ("train", "test"))
            return {row[0]: "train" for row in train} | {row[0]: "test" for row in test}
        if split != "own" and (path := lists.find(FOLDS)) is not None:
            return _folds(lists, path, split[-1])
        names = [name for name in names if (found := _CLIP.fullmatch(name)) and found["actor"] in ACTORS]
        if split == "own":
            return dict.fromkeys(names)
        if self.settings.lists is not None:
            raise lists.unlike(FOLDS)
        log.info("CREMA-D: %s is one of raybal's own, since there is no %s", split, FOLDS)
        part_of = own_fold(int(split[-1]))
        return {name: part_of[name[:4]] for name in names}


def own_fold(number: int) -> dict[str, str]:
    """Returns the split of each actor in one of the five folds that raybal makes."""
    actors = [ACTORS[i] for i in hashing.order(ACTORS, 0)]
    start = (number - 1) * _HELD_OUT
    turned = actors[start:] + actors[:start]
    parts = ["test"] * _HELD_OUT + ["val"] * _HELD_OUT
    return dict.fromkeys(turned, "train") | dict(zip(turned, parts, strict=False))


def _folds(lists: Tree, path: str, number: str) -> dict[str, str]:
    """Returns the split of each clip in a fold of the file of folds."""
    try:
        fold = json.loads("\n".join(lists.read(path)))[number]
        return {name.partition(".")[0]: part for part in ("train", "val", "test") for name in fold[part]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{lists.store.path(path)} has no fold {number} with train, val and test as JSON: {error!r}"
        ) from error
