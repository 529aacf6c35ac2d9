"""Images: bytes to uint8 arrays of one size. What fits a picture into a size is shared with `video`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raybal.media.damage import MediaError, check_declared_length
from raybal.settings import Settings, setting

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageSettings(Settings):
    """How images become arrays."""

    height: int = setting(96, help="Height of a prepared image in pixels.", ge=1)
    width: int = setting(96, help="Width of a prepared image in pixels.", ge=1)
    color: Literal["rgb", "gray"] = setting("rgb", help="Three colour channels, or one of brightness.")

    @property
    def channels(self) -> int:
        """The number of channels C."""
        return 3 if self.color == "rgb" else 1

    def shape(self) -> tuple[int, int, int]:
        """Returns the shape (C, H, W) of a prepared image."""
        return self.channels, self.height, self.width


def decode_image(source: bytes, settings: ImageSettings) -> NDArray[np.uint8]:
    """Decodes one image.

    The EXIF orientation is applied, transparency is dropped, 16-bit grey keeps its upper 8 bits; then `fit`.

    Args:
        source: the content of the file, in any format that Pillow reads.
        settings: size and colour.

    Returns:
        uint8 [C, H, W].

    Raises:
        MediaError: empty, no image, or damaged.
    """
    check_declared_length(source)
    with open_image(source) as image:
        pixels = np.array(_convert(image, "RGB" if settings.color == "rgb" else "L"))
    pictures = torch.from_numpy(pixels.reshape(1, *pixels.shape[:2], -1)).permute(0, 3, 1, 2)
    return fit(pictures, settings.height, settings.width)[0].numpy()


@contextmanager
def open_image(source: bytes) -> Iterator[Image]:
    """Opens an image with Pillow; whatever Pillow raises inside the block becomes a MediaError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns about large and about odd files; both decode, or raise.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source)) as image:
                yield image
    except UnidentifiedImageError as error:
        raise MediaError("not an image") from error
    # Pillow's format plugins raise nearly anything on broken files (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise MediaError(f"cannot be decoded: {error}") from error


def _convert(image: Image, mode: str) -> Image:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright if upright.mode == mode else upright.convert(mode)


def fit(pictures: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scales pictures until they cover height x width, keeping their aspect, and crops the centre.

    The side that is short relative to the target gets exactly its target length; what the other side has too much
    is cut off in equal parts. Scaling is bilinear and antialiased.

    Args:
        pictures: uint8 [N, C, h, w].
        height, width: target in pixels.

    Returns:
        uint8 [N, C, height, width], contiguous.
    """
    from torchvision.transforms.v2 import functional as transforms

    h, w = pictures.shape[-2:]
    scale = max(height / h, width / w)
    # Rounding may leave a side one pixel short of the target.
    size = [max(height, round(h * scale)), max(width, round(w * scale))]
    if size != [h, w]:
        pictures = transforms.resize(pictures, size, antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return pictures[..., top : top + height, left : left + width].contiguous()
