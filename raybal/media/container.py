"""Opening media files with libav, what they hold, and whether libav finds all that they declare.

PyAV is imported where it is used, so that the settings beside the decoders load on a machine without it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raybal.media.damage import MediaError, check_declared_length

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from soundfile import SoundFile

IMAGE_KINDS = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "avif")

# Naming the demuxer saves libav's guess; everything else it may guess from this list. Playlists (HLS, DASH, concat)
# are left out on purpose: a line of text must never make a decoder open other files. So are images and subtitles.
_DEMUXERS = {"mp4": "mp4", "matroska": "matroska", "mpeg": "mpeg", "avi": "avi", "flv": "flv", "ogg": "ogg"}
_WELCOME = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,wav,w64,flac,mp3,aac,ac3,eac3,aiff,au,caf,amr,gif,nut,mxf,"
    "ivf,dv,rm,h264,hevc,m4v,wv,ape,tta"
)
# Only these write the duration of the whole clip at the front, where a cut leaves it.
_DECLARE_DURATION = ("matroska", "flv")
_RATES = (1000, 768_000)


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds, read from its header.

    Attributes:
        format: the container or the image format, e.g. "mp4", "wav", "png".
        has_video, has_audio: whether there is such a track. A cover picture is no video track.
        is_image: whether the file is one picture.
        duration: seconds; None for an image, and where the header does not tell.
    """

    format: str
    has_video: bool = False
    has_audio: bool = False
    is_image: bool = False
    duration: float | None = None


def probe(source: bytes) -> MediaInfo:
    """Returns what a media file holds; nothing is decoded.

    Args:
        source: the content of the file.

    Raises:
        MediaError: the file is empty, no media file, or shorter than it declares.
    """
    kind = check_declared_length(source)
    if kind in IMAGE_KINDS:
        from raybal.media.image import open_image

        with open_image(source):
            return MediaInfo(kind, is_image=True)
    if is_sound_file(source, kind):
        with open_sound(source) as sound:
            return MediaInfo(kind, has_audio=True, duration=sound.frames / sound.samplerate)
    with open_container(source, kind) as container:
        return MediaInfo(
            format=kind or container.format.name,
            has_video=find_stream(container, "video") is not None,
            has_audio=find_stream(container, "audio") is not None,
            duration=container.duration / 1e6 if container.duration else None,
        )


def is_sound_file(source: bytes, kind: str) -> bool:
    """Tells whether libsndfile reads this file; an Ogg file may also hold FLAC or video, which libav reads."""
    # The first packet of an Ogg file names its codec; it begins behind the 28 bytes of the first page's header.
    sounds = (b"\x01vorbis", b"OpusHead")
    return kind in ("wav", "flac", "aiff") or (kind == "ogg" and source[28:40].startswith(sounds))


@contextmanager
def open_sound(source: bytes) -> Iterator[SoundFile]:
    """Opens a file with libsndfile; whatever that raises inside the block becomes a MediaError."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(source)) as sound:
            check_rate(sound.samplerate)
            yield sound
    except soundfile.LibsndfileError as error:
        raise MediaError(f"cannot be decoded: {error.error_string}") from error


def check_rate(rate: int) -> None:
    """Raises a MediaError for a number of samples a second that no recording has: the header is damaged."""
    low, high = _RATES
    if not low <= rate <= high:
        raise MediaError(f"cannot be decoded: {rate} samples a second, and {low} to {high} are accepted")


@contextmanager
def open_container(source: bytes, kind: str) -> Iterator[InputContainer]:
    """Opens a clip with libav; whatever libav raises inside the block becomes a MediaError.

    Args:
        source: the content of the file.
        kind: as returned by `check_declared_length`.

    Raises:
        MediaError: not a clip, or damaged.
    """
    import av

    if kind in IMAGE_KINDS and kind != "gif":
        raise MediaError(f"not a clip: one {kind} image")
    try:
        container: Any = av.open(
            io.BytesIO(source),
            format=_DEMUXERS.get(kind),
            container_options={"format_whitelist": _WELCOME},
            metadata_errors="replace",  # titles in another encoding than UTF-8 are no concern here
        )
    except av.error.FFmpegError as error:
        if kind:
            raise MediaError(f"cannot be opened: {error.strerror}") from error
        raise MediaError(f"not a media file: it begins with {source[:8]!r}") from error
    with container:
        if find_stream(container, "video") is None and find_stream(container, "audio") is None:
            raise MediaError("not a media file: no video and no audio track")
        try:
            yield container
        except av.error.FFmpegError as error:
            raise MediaError(f"cannot be decoded: {error.strerror}") from error


def find_stream(container: InputContainer, kind: str) -> Any | None:
    """Returns the first track of a kind ("video" or "audio"), or None. Cover pictures of songs do not count."""
    from av.stream import Disposition

    for stream in getattr(container.streams, kind):
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def read_packets(container: InputContainer, size: int) -> dict[str, list[Packet]]:
    """Reads the whole file once and returns its packets in decoding order: {"video": [...], "audio": [...]}.

    A track without a single packet is left out: it holds nothing, which is not damage.

    Args:
        container: from `open_container`.
        size: bytes of the file.

    Raises:
        MediaError: the container declares more than it holds.
    """
    tracks = {kind: find_stream(container, kind) for kind in ("video", "audio")}
    streams = [stream for stream in tracks.values() if stream is not None]
    for stream in streams:
        _check_sample_table(stream, size)
    packets: dict[int, list[Packet]] = {stream.index: [] for stream in streams}
    try:
        for packet in container.demux(streams):
            # Empty packets stand for "no more" to a decoder; AVI has them in its middle, for dropped pictures.
            if packet.size:
                packets[packet.stream_index].append(packet)
    except IndexError as error:
        # PyAV knows the tracks of the header only; a damaged transport stream seems to begin others later.
        raise MediaError("cannot be decoded: a track begins in the middle of the file") from error
    found = {kind: packets[stream.index] for kind, stream in tracks.items() if stream is not None}
    found = {kind: listed for kind, listed in found.items() if listed}
    if not found:
        raise MediaError("cut short: no picture and no sound")
    _check_duration(container, found)
    return found


def decode(stream: Any, packets: Iterable[Packet]) -> Iterator[Any]:
    """Yields the decoded frames of one track in presentation order; may be called again for the same track.

    Raises:
        MediaError: no decoder for the track.
    """
    decoder = stream.codec_context
    if decoder is None:
        raise MediaError(f"cannot be decoded: no decoder for the {stream.type} track")
    if decoder.is_open:
        decoder.flush_buffers()
    else:
        # Clips are decoded side by side by many processes; threads inside one only cost.
        decoder.thread_count = 1
    for packet in packets:
        yield from decoder.decode(packet)
    yield from decoder.decode(None)


def seconds_at_end(packets: list[Packet]) -> float:
    """Returns the time in seconds at which the last of a track's packets ends."""
    ends = [packet.pts + (packet.duration or 0) for packet in packets if packet.pts is not None]
    return max(ends, default=0) * float(packets[0].time_base)


def length(container: InputContainer, packets: Mapping[str, list[Packet]]) -> float:
    """Returns the length of a clip in seconds: until the last of its tracks ends."""
    return max(map(seconds_at_end, packets.values())) - (container.start_time or 0) / 1e6


def _check_sample_table(stream: Any, size: int) -> None:
    # An MP4's table gives the place of every packet; of other containers libav knows only a few places.
    if "mp4" not in stream.container.format.name:
        return
    entries = stream.index_entries
    inside = sum(entry.pos + entry.size <= size for entry in entries)
    if inside < len(entries):
        raise MediaError(f"cut short: {inside} of {len(entries)} declared {stream.type} frames")


def _check_duration(container: InputContainer, found: dict[str, list[Packet]]) -> None:
    # Tracks that are not read here (subtitles, data) may last longer than picture and sound.
    if container.format.name not in _DECLARE_DURATION or len(container.streams) > len(found) or not container.duration:
        return
    declared = container.duration / 1e6
    reached = length(container, found)
    # Durations are often a few pictures off, and a recorder that lost its clock writes none at all.
    if reached < 0.9 * declared - 0.5:
        raise MediaError(f"cut short: {reached:.2f} of {declared:.2f} declared seconds")
