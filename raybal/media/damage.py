"""What a media file declares about its own length, held against the bytes that are there.

A file cut short often decodes without any error: a WAV reader shortens the clip in silence, a video decoder
conceals the part of a picture that is missing. But nearly every container says somewhere how long it is. The checks
here read those places and nothing else, in microseconds and without a decoder. They err on the side of a good
file: what a format leaves open (streamed files declare no length) is not held against it.

The extensions of the judgement that need libav or a decoder are in `container` (an MP4's sample table, a declared
duration) and in `video` and `audio` (pictures that the decoder had to repair, samples that never came).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from raybal.errors import DataError

# WAV and AVI writers that stream put the largest number they can where the size would be.
_STREAMED_RIFF = 0x7FFF_0000
_PACK, _END, _SYSTEM, _PADDING = 0xBA, 0xB9, 0xBB, 0xBE
_QUICKTIME_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_IMAGE_BRANDS = (b"avif", b"avis", b"mif1", b"heic", b"heix")


class MediaError(DataError):
    """A media file that cannot be decoded, or that holds less than it declares.

    Its text is a few words for the quarantine table, e.g. "empty" or "cut short: 5 of 12 declared frames".
    """


def sniff(source: bytes) -> str:
    """Returns the kind of file that the first bytes announce, or "" for one not known here."""
    for kind, magic in _MAGIC.items():
        if source.startswith(magic):
            return kind
    if source[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return {b"WAVE": "wav", b"AVI ": "avi", b"WEBP": "webp"}.get(source[8:12], "")
    if source.startswith(b"FORM") and source[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if source[4:8] in _QUICKTIME_STARTS:
        return "avif" if source[8:12] in _IMAGE_BRANDS else "mp4"
    if source.startswith(b"ID3") or (source[:1] == b"\xff" and source[1:2] in (b"\xfb", b"\xfa", b"\xf3", b"\xf2")):
        return "mp3"
    return ""


_MAGIC: dict[str, bytes | tuple[bytes, ...]] = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff",
    "gif": (b"GIF87a", b"GIF89a"),
    "bmp": b"BM",
    "tiff": (b"II*\x00", b"MM\x00*"),
    "flac": b"fLaC",
    "ogg": b"OggS",
    "matroska": b"\x1a\x45\xdf\xa3",
    "mpeg": b"\x00\x00\x01\xba",
    "flv": b"FLV\x01",
    "asf": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "w64": b"riff\x2e\x91\xcf\x11",
    "caf": b"caff",
    "au": b".snd",
}


def check_declared_length(source: bytes) -> str:
    """Holds the length that a file declares against its bytes.

    Returns:
        the kind of the file, as `sniff` gives it.

    Raises:
        MediaError: nothing there at all, or less than declared.
    """
    if not source:
        raise MediaError("empty")
    kind = sniff(source)
    if kind in _CHECKS:
        _CHECKS[kind](source)
    return kind


def ends_as_written(source: bytes) -> bool:
    """Tells whether an MPEG program stream ends with the marks of a finished file: the end code, or padding.

    An MPEG program stream declares no length, and few writers set the end code. Those that fill the last pack with
    padding can still be recognised. Without either mark only the last picture tells whether something is missing.
    """
    last = -1
    for code, _, _ in _program_packets(source):
        last = code
    return last in (_END, _PADDING)


def _cut(source: bytes, declared: int) -> MediaError:
    return MediaError(f"cut short: {len(source)} of {declared} declared bytes")


def _check_png(source: bytes) -> None:
    at = 8
    while at + 8 <= len(source):
        size, kind = int.from_bytes(source[at : at + 4], "big"), source[at + 4 : at + 8]
        at += 12 + size
        if kind == b"IEND" and at <= len(source):
            return
    raise MediaError("cut short: the PNG has no end chunk")


def _check_jpeg(source: bytes) -> None:
    # Segments are skipped by their length up to the pixels, since a thumbnail inside one has its own end marker.
    at = 2
    while at + 4 <= len(source) and source[at] == 0xFF and source[at + 1] != 0xDA:
        filled = source[at + 1] == 0xFF
        at += 1 if filled else 2 + int.from_bytes(source[at + 2 : at + 4], "big")
    if source.find(b"\xff\xd9", at) < 0:
        raise MediaError("cut short: the JPEG has no end marker")


def _check_riff(source: bytes) -> None:
    # An AVI of more than 1 GB is a row of RIFF chunks; anything else has one.
    order, at = _byte_order(source), 0
    while source[at : at + 4] in (b"RIFF", b"RIFX", b"FORM"):
        size = int.from_bytes(source[at + 4 : at + 8], order)
        if size == 0 or size >= _STREAMED_RIFF:
            return
        # The padding byte of an odd last chunk is often left out.
        if at + 8 + (size & ~1) > len(source):
            raise _cut(source, at + 8 + size)
        at += 8 + size + size % 2


def _check_wav(source: bytes) -> None:
    order, at, long_size = _byte_order(source), 12, 0
    while at + 8 <= len(source):
        kind, size = source[at : at + 4], int.from_bytes(source[at + 4 : at + 8], order)
        if kind == b"ds64":  # RF64: the sizes that do not fit into 32 bits, of the file and of the data
            long_size = int.from_bytes(source[at + 16 : at + 24], order)
        if kind == b"data":
            size = size if size < _STREAMED_RIFF else long_size
            if at + 8 + size > len(source):
                raise _cut(source, at + 8 + size)
            return
        at += 8 + size + size % 2
    raise MediaError("cut short: the WAV file has no data")


def _check_w64(source: bytes) -> None:
    if int.from_bytes(source[16:24], "little") > len(source):
        raise _cut(source, int.from_bytes(source[16:24], "little"))


def _check_au(source: bytes) -> None:
    size = int.from_bytes(source[8:12], "big")
    if size < _STREAMED_RIFF and int.from_bytes(source[4:8], "big") + size > len(source):
        raise _cut(source, int.from_bytes(source[4:8], "big") + size)


def _check_caf(source: bytes) -> None:
    at = 8
    while at + 12 <= len(source):
        # A stream writes -1 as the size of its last chunk.
        at += 12 + max(0, int.from_bytes(source[at + 4 : at + 12], "big", signed=True))
    if at > len(source):
        raise _cut(source, at)


def _check_asf(source: bytes) -> None:
    # The object of file properties: its identity and size, the file's identity, the file's size, ..., flags.
    at = source.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11", 0, 1 << 16)
    declared, live = int.from_bytes(source[at + 40 : at + 48], "little"), source[at + 88 : at + 89] in (b"\1", b"\3")
    if at >= 0 and not live and declared > len(source):
        raise _cut(source, declared)


def _byte_order(source: bytes) -> Literal["big", "little"]:
    return "big" if source.startswith((b"RIFX", b"FORM")) else "little"


def _check_ogg(source: bytes) -> None:
    at, begun, ended = 0, set(), set()
    while source[at : at + 4] == b"OggS":
        flags, serial, segments = source[at + 5 : at + 6], source[at + 14 : at + 18], source[at + 26 : at + 27]
        body = at + 27 + (segments[0] if segments else 0)
        at = body + sum(source[at + 27 : body])
        if body > len(source) or at > len(source):
            raise MediaError("cut short: the last Ogg page is incomplete")
        begun.update([serial] if flags[0] & 2 else [])
        ended.update([serial] if flags[0] & 4 else [])
    if begun - ended:
        raise MediaError("cut short: the Ogg stream has no last page")


def _check_mp3(source: bytes) -> None:
    # The first frame of most MP3 files holds no sound but a table: "Xing" or "Info", flags, frames, bytes.
    at = 0
    if source.startswith(b"ID3"):
        size = source[6:10]
        at = 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3]) if len(size) == 4 else len(source)
    head = source[at : at + 192]
    tag = max(head.find(b"Xing"), head.find(b"Info"))
    if tag < 0:
        return
    flags = int.from_bytes(head[tag + 4 : tag + 8], "big")
    if flags & 2:
        where = tag + 8 + 4 * (flags & 1)
        declared = int.from_bytes(head[where : where + 4], "big")
        if at + declared > len(source):
            raise _cut(source, at + declared)


def _check_mp4(source: bytes) -> None:
    boxes = list(_boxes(source))
    kinds = {kind for kind, _, _ in boxes}
    if b"moov" not in kinds:
        raise MediaError("cut short: the table of the frames (moov) is missing")
    fragmented = b"moof" in kinds or any(
        kind == b"moov" and source.find(b"mvex", start, end) >= 0 for kind, start, end in boxes
    )
    # Without fragments the sample table tells exactly what is missing, and `container` asks it.
    needed = (b"moov", b"moof", b"mdat") if fragmented else (b"moov",)
    for kind, _, end in boxes:
        if end > len(source) and kind in needed:
            raise _cut(source, end)


def _boxes(source: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start, declared end) of the outermost boxes of an MP4 or QuickTime file."""
    at = 0
    while at + 8 <= len(source):
        size, kind = int.from_bytes(source[at : at + 4], "big"), source[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(source[at + 8 : at + 16], "big")
        end = at + size if size >= 8 else len(source)
        yield kind, at, end
        at = end


def _check_matroska(source: bytes) -> None:
    at, header = _vint(source, 4)
    at = at + header if header is not None else len(source)
    if source[at : at + 4] != b"\x18\x53\x80\x67":
        raise MediaError("cut short: the Matroska segment is missing")
    start, size = _vint(source, at + 4)
    if size is not None and start + size > len(source):
        raise _cut(source, start + size)


def _vint(source: bytes, at: int) -> tuple[int, int | None]:
    """Returns (offset behind it, value) of an EBML number; None stands for "not known yet"."""
    first = source[at] if at < len(source) else 0
    width = 9 - first.bit_length()
    if width > 8:
        return at, None
    value = int.from_bytes(source[at : at + width], "big") & ((1 << 7 * width) - 1)
    return at + width, None if value == (1 << 7 * width) - 1 else value


def _check_mpeg(source: bytes) -> None:
    for code, _, end in _program_packets(source):
        if end > len(source) and code != _PADDING:
            raise MediaError(f"cut short: the last MPEG packet ends {end - len(source)} bytes after the file")


def _program_packets(source: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (stream code, start, declared end) of the packets of an MPEG-1 or MPEG-2 program stream."""
    at = 0
    while source[at : at + 3] == b"\x00\x00\x01" and at + 4 <= len(source):
        code = source[at + 3]
        if code == _END:
            end = at + 4
        elif code == _PACK:
            second = source[at + 4 : at + 5] >= b"\x40"
            stuffing = source[at + 13 : at + 14] if second else b""
            end = at + (14 + (stuffing[0] & 7 if stuffing else 0) if second else 12)
        elif code >= _SYSTEM:
            end = at + 6 + int.from_bytes(source[at + 4 : at + 6], "big")
        else:
            return
        yield code, at, end
        at = end


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "png": _check_png,
    "jpeg": _check_jpeg,
    "webp": _check_riff,
    "avi": _check_riff,
    "aiff": _check_riff,
    "wav": _check_wav,
    "w64": _check_w64,
    "au": _check_au,
    "caf": _check_caf,
    "asf": _check_asf,
    "ogg": _check_ogg,
    "mp3": _check_mp3,
    "mp4": _check_mp4,
    "matroska": _check_matroska,
    "mpeg": _check_mpeg,
}
