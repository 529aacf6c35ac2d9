import io

import numpy as np
import pytest
from media_files import textured_frames, write_image
from PIL import Image

from raybal.media.image import ImageSettings, decode_image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_a_picture_of_the_right_size_is_untouched(kind):
    pixels = textured_frames(1)[0]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(write_image(kind, pixels, **options), ImageSettings(height=64, width=96))
    assert np.array_equal(decoded, pixels.transpose(2, 0, 1))


def test_a_small_digit_in_grey():
    digit = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    source = write_image("PNG", digit)
    decoded = decode_image(source, ImageSettings(height=28, width=28, color="gray"))
    assert decoded.shape == (1, 28, 28)
    assert np.array_equal(decoded[0], digit)
    assert decode_image(source, ImageSettings(height=32, width=32)).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("size", "scaled", "corner"),
    [
        ((32, 32), (32, 48), (0, 8)),
        ((20, 64), (43, 64), (11, 0)),
        ((128, 64), (128, 192), (0, 64)),
        ((8, 5), (8, 12), (0, 3)),
    ],
)
def test_pictures_cover_the_target_and_lose_what_is_too_much(size, scaled, corner):
    pixels = textured_frames(1)[0]
    decoded = decode_image(write_image("PNG", pixels), ImageSettings(height=size[0], width=size[1]))
    expected = np.asarray(Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling.BILINEAR))
    expected = expected[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    assert np.abs(decoded.transpose(1, 2, 0).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_is_honoured(orientation):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = write_image("PNG", pixels, exif=exif)
    decoded = decode_image(source, ImageSettings(height=32, width=32, color="gray"))[0]
    # Where the stored top left corner belongs, from the definition of the tag.
    row, column = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert np.argwhere(decoded.reshape(2, 16, 2, 16).mean((1, 3)) > 200).tolist() == [[row, column]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_any_colour_mode_becomes_rgb_or_grey(mode):
    levels = np.linspace(0, 255, 64, dtype=np.uint8).repeat(64).reshape(64, 64)
    if mode == "I;16":
        picture = Image.fromarray(levels.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(levels).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF")
    gray = decode_image(buffer.getvalue(), ImageSettings(height=64, width=64, color="gray"))[0]
    rgb = decode_image(buffer.getvalue(), ImageSettings(height=64, width=64))
    assert np.abs(gray[[0, 32, 63], 10:50].mean(1) - [0, 130, 255]).max() < (40 if mode == "1" else 6)
    assert np.abs(rgb.astype(int) - gray).max() <= 2
