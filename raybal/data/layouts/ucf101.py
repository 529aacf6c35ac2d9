"""UCF101: 13,320 clips of 101 human actions from YouTube, in 25 groups a class of scenes filmed alike.

Soomro, Zamir and Shah, "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", CRCV-TR-12-01, 2012.

    UCF-101/<Class>/v_<Class>_g<group>_c<clip>.avi      of UCF101.rar
    ucfTrainTestlist/classInd.txt                       number and name of each class
    ucfTrainTestlist/trainlist01.txt to 03              <Class>/<file> <number>, one line a clip
    ucfTrainTestlist/testlist01.txt to 03               <Class>/<file>

Only the 51 classes that UCF50 has not come with sound. A clip without a sound track is an item whose audio is missing,
or left out with `audio_only`. The three splits have no validation: a share of the training groups of each class is
taken, by hash. Copies of the lists spell HandstandPushups in two ways, so the case of letters does not matter.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from raybal import hashing
from raybal.data.layouts.base import Clip, Layout, LayoutSettings
from raybal.data.layouts.tree import Tree
from raybal.errors import DataError
from raybal.settings import setting
from raybal.store import Store, storage_errors

_LINE = re.compile(r"(?P<label>\w+)/(?P<clip>v_\w+_(?P<group>g\d+)_c\d+)\.avi( \d+)?")
# An AVI's list of tracks is at its front; that of a sound track has this mark.
_SOUND, _FRONT = b"auds", 2**14
_THREADS = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UCF101Settings(LayoutSettings):
    """The splits of UCF101."""

    name: str | None = setting("ucf101", help="data set")
    split: Literal[1, 2, 3, "own"] = setting(
        1, help="1, 2, 3: the official ones; own: raybal splits by the group of scenes"
    )
    val_groups: float = setting(
        0.1, ge=0, lt=1, help="share of the training groups of each class in the validation split of 1, 2 and 3"
    )
    audio_only: bool = setting(False, help="leave out clips without a sound track, which leaves 51 classes")


class UCF101(Layout):
    """UCF101, with the class names of classInd.txt."""

    name = "ucf101"
    title = "UCF101"
    Settings = UCF101Settings
    settings: UCF101Settings

    def clips(self, folder: Tree, lists: Tree) -> list[Clip]:
        classes = {line.split()[-1].lower(): line.split()[-1] for line in lists.lines("classInd.txt")}
        number = 1 if self.settings.split == "own" else self.settings.split
        files = {
            clip.lower(): path for clip, path in folder.media(".avi", "UCF-101/<Class>/v_<Class>_g01_c01.avi").items()
        }
        clips = []
        for part in ("train", "test"):
            for line in lists.lines(f"{part}list0{number}.txt"):
                found = _LINE.fullmatch(line.strip())
                if found is None or found["label"].lower() not in classes:
                    raise DataError(
                        f"{lists.store.root}: {part}list0{number}.txt has a line {line.strip()!r}, and "
                        "<Class>/v_<Class>_g01_c01.avi was expected, with a class of classInd.txt"
                    )
                label = classes[found["label"].lower()]
                file = {"uri": files.get(found["clip"].lower())}
                clips.append(Clip(found["clip"], file, label, f"{label}_{found['group']}", part))
        clips = self._split(clips)
        return _with_sound(clips, folder.store) if self.settings.audio_only else clips

    def _split(self, clips: list[Clip]) -> list[Clip]:
        """Returns the clips with a validation split, or without any."""
        if self.settings.split == "own":
            return [dataclasses.replace(c, split=None) for c in clips]
        groups: dict[str, set[str]] = {}
        for clip in clips:
            if clip.split == "train":
                groups.setdefault(clip.label, set()).add(clip.group)
        held_out: set[str] = set()
        for of_class in groups.values():
            names = sorted(of_class)
            held_out.update(names[i] for i in hashing.order(names, 0)[: round(self.settings.val_groups * len(names))])
        return [dataclasses.replace(c, split="val") if c.split == "train" and c.group in held_out else c for c in clips]


def _with_sound(clips: list[Clip], store: Store) -> list[Clip]:
    """Returns the clips that have a sound track, and those whose file is gone of classes that have sound."""

    def look(clip: Clip) -> bool:
        path = clip.files["uri"]
        if path is None:
            return False
        with storage_errors("read", store.path(path)), store.filesystem.open_input_stream(store.path(path)) as stream:
            return _SOUND in stream.read(_FRONT)

    with ThreadPoolExecutor(_THREADS) as pool:
        sound: Mapping[str, bool] = dict(zip((c.id for c in clips), pool.map(look, clips), strict=True))
    classes = {c.label for c in clips if sound[c.id]}
    kept = [c for c in clips if sound[c.id] or (c.files["uri"] is None and c.label in classes)]
    log.info("UCF101: %d clips without sound are left out", len(clips) - len(kept))
    return kept
