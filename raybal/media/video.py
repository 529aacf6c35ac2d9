"""Video: bytes to a few frames spread over the clip, as one uint8 array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raybal.media.container import decode
from raybal.media.damage import MediaError
from raybal.media.image import fit
from raybal.settings import Settings, setting

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.video.reformatter import VideoReformatter


@dataclass(frozen=True)
class VideoSettings(Settings):
    """How clips become frames."""

    frames: int = setting(8, help="Frames sampled from a clip, spread evenly over it.", ge=1)
    height: int = setting(96, help="Height of a prepared frame in pixels.", ge=1)
    width: int = setting(96, help="Width of a prepared frame in pixels.", ge=1)
    color: Literal["rgb", "gray"] = setting("rgb", help="Three colour channels, or one of brightness.")

    @property
    def channels(self) -> int:
        """The number of channels C."""
        return 3 if self.color == "rgb" else 1

    def shape(self) -> tuple[int, int, int, int]:
        """Returns the shape (T, C, H, W) of a prepared clip."""
        return self.frames, self.channels, self.height, self.width


def positions(count: int, frames: int) -> list[int]:
    """Returns which of a clip's `count` frames are sampled: the middle one of each of T equal parts.

    Frame t of T is floor((2t + 1) * count / 2T). A clip of fewer frames than T has some of them repeated.
    """
    return [(2 * t + 1) * count // (2 * frames) for t in range(frames)]


def frames_from_packets(packets: list[Packet], settings: VideoSettings) -> NDArray[np.uint8]:
    """Decodes the packets of one video track into uint8 [T, C, H, W].

    Every picture is decoded, since only that tells whether one is damaged (and most depend on others); only the
    sampled ones are converted and scaled.

    Raises:
        MediaError: a damaged picture, or none.
    """
    pictures = [_pixels(frame, settings.color) for frame in _sampled(packets, settings.frames)]
    if len({picture.shape for picture in pictures}) == 1:
        return _fit(np.stack(pictures), settings)
    return np.concatenate([_fit(picture[None], settings) for picture in pictures])


def _fit(pictures: NDArray[np.uint8], settings: VideoSettings) -> NDArray[np.uint8]:
    """Scales uint8 [T, h, w, C] to [T, C, H, W]."""
    return fit(torch.from_numpy(pictures).permute(0, 3, 1, 2), settings.height, settings.width).numpy()


def _sampled(packets: list[Packet], frames: int) -> list[VideoFrame]:
    stream: Any = packets[0].stream
    # Packets outside of an edit list are decoded for others' sake and not shown.
    expected = sum(not packet.is_discard for packet in packets)
    for _ in range(2):
        kept, count = _keep(stream, packets, set(positions(expected, frames)))
        if not count:
            raise MediaError("cannot be decoded: no picture")
        if count == expected:
            return [kept[i] for i in positions(count, frames)]
        # A picture need not be one packet (interlaced fields); now that their number is known, once more.
        expected = count
    raise MediaError("cannot be decoded: the number of pictures changes from one reading to the next")


def _keep(stream: Any, packets: list[Packet], wanted: set[int]) -> tuple[dict[int, VideoFrame], int]:
    """Decodes all pictures; returns the wanted ones by their position, and how many there are."""
    kept: dict[int, VideoFrame] = {}
    count = 0
    for frame in decode(stream, packets):
        if frame.is_corrupt:
            raise MediaError(f"damaged picture: number {count + 1} of {len(packets)}")
        if count in wanted:
            kept[count] = frame
        count += 1
    return kept, count


def _pixels(frame: VideoFrame, color: str) -> NDArray[np.uint8]:
    """Returns uint8 [h, w, C], upright."""
    # One thread: starting swscale's threads costs eight times the conversion of a small frame. With one, brightness
    # through swscale is as fast as reading the luma plane, and it knows every pixel format and range.
    pixel_format = "rgb24" if color == "rgb" else "gray"
    converted: Any = _reformatter().reformat(frame, format=pixel_format, threads=1)
    pixels: NDArray[np.uint8] = converted.to_ndarray().reshape(frame.height, frame.width, -1)
    turns = round(frame.rotation / 90) % 4
    return np.rot90(pixels, turns) if turns else pixels


_shared: list[VideoReformatter] = []


def _reformatter() -> VideoReformatter:
    """Returns this process's reformatter: it keeps its tables as long as size and format stay the same."""
    if not _shared:
        from av.video.reformatter import VideoReformatter

        _shared.append(VideoReformatter())
    return _shared[0]
