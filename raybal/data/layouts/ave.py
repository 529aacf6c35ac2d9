"""AVE: 4,097 clips of ten seconds from YouTube, each with an event that is heard and seen, of 28 classes.

Tian, Shi, Li, Duan and Xu, "Audio-Visual Event Localization in Unconstrained Videos", ECCV 2018.

As `AVE_Dataset.zip` holds it:

    Annotations.txt                             Category&VideoID&Quality&StartTime&EndTime, one line an event
    trainSet.txt, valSet.txt, testSet.txt       the same: 3,339, 402 and 402 lines
    AVE/<VideoID>.mp4

The lists are of events, and a clip may have several: it is one item, with the category of its first event. A clip on
several of the official lists is in the test split if it is on the list of that, else in the validation split. So the
splits are a few clips smaller than the 3,312, 401 and 402 that each list alone has.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from raybal.data.layouts.base import Clip, Layout, LayoutSettings
from raybal.data.layouts.tree import Tree
from raybal.settings import setting

COLUMNS = ("Category", "VideoID", "Quality", "StartTime", "EndTime")
# The list that comes first keeps a clip.
_LISTS = (("test", "testSet.txt"), ("val", "valSet.txt"), ("train", "trainSet.txt"))

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AVESettings(LayoutSettings):
    """The splits of AVE."""

    name: str | None = setting("ave", help="data set")
    split: Literal["official", "own"] = setting(
        "official", help="official: the data set's lists; own: raybal splits by the YouTube video"
    )


class AVE(Layout):
    """AVE, with the class names of its lists."""

    name = "ave"
    title = "AVE"
    Settings = AVESettings
    settings: AVESettings

    def clips(self, folder: Tree, lists: Tree) -> list[Clip]:
        own = self.settings.split == "own"
        named: dict[str, tuple[str, str | None]] = {}
        moved = 0
        for part, name in ((None, "Annotations.txt"),) if own else _LISTS:
            rows = lists.rows(name, COLUMNS, "&")
            moved += len(named.keys() & {row[1] for row in rows})
            for label, video, *_ in rows:
                named.setdefault(video, (label, part))
        if moved:
            log.info("AVE: %d clips are on several lists and count for the first of test, val and train", moved)
        files = folder.media(".mp4", "AVE/<VideoID>.mp4")
        return [Clip(i, {"uri": files.get(i)}, label, i, part) for i, (label, part) in named.items()]
