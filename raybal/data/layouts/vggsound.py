"""VGGSound: about 200,000 clips of ten seconds from YouTube whose sound has its source in the picture, of 309 classes.

Chen, Xie, Vedaldi and Zisserman, "VGGSound: A Large-Scale Audio-Visual Dataset", ICASSP 2020.

    vggsound.csv                            YouTube id, start in seconds, label, train or test; no header
    <folders>/<YouTube id>_<start>.mp4      the start with six digits

The archives unpack into deep folders, and copies have one folder a split: where a clip lies does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raybal.data.layouts.base import Clip, Layout, LayoutSettings
from raybal.data.layouts.tree import Tree
from raybal.settings import setting


@dataclass(frozen=True)
class VGGSoundSettings(LayoutSettings):
    """The splits of VGGSound."""

    name: str | None = setting("vggsound", help="data set")
    split: Literal["official", "own"] = setting(
        "official", help="official: as vggsound.csv says, without validation; own: raybal splits by the YouTube video"
    )


class VGGSound(Layout):
    """VGGSound, with the class names of its list."""

    name = "vggsound"
    title = "VGGSound"
    Settings = VGGSoundSettings
    settings: VGGSoundSettings

    def clips(self, folder: Tree, lists: Tree) -> list[Clip]:
        rows = lists.rows("vggsound.csv", ("YouTube id", "start", "label", "split"))
        files = folder.media(".mp4", "<YouTube id>_<start>.mp4")
        official = self.settings.split == "official"
        clips = []
        for video, start, label, part, *_ in rows:
            name = f"{video}_{start.zfill(6)}"
            clips.append(Clip(name, {"uri": files.get(name)}, label, video, part if official else None))
        return clips
