import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rdmldg_ray.datasets.images import ImageError, check_image, decode_image, viewable

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image, format="PNG", **settings):
    sink = io.BytesIO()
    image.save(sink, format, **settings)
    return sink.getvalue()


def noise(size=(64, 64)):
    return Image.effect_noise(size, 50).convert("RGB")


def png16(values, colour_type):
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


def palette(transparent):
    image = Image.new("P", (3, 2), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((0, 0), 1)
    return encoded(image, transparency=1) if transparent else encoded(image)


def shown(data):
    """The colours of the first and of the last pixel, after a check that passes."""
    size = check_image("a", data)
    image = decode_image("a", data)
    assert (image.mode, image.size) == ("RGB", size)
    return image.getpixel((0, 0)), image.getpixel((size[0] - 1, size[1] - 1))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_a_sound_image_gives_its_size(format):
    data = encoded(noise((7, 5)), format)
    assert check_image("a/b.png", data) == decode_image("a/b.png", data).size == (7, 5)


@pytest.mark.parametrize(
    ("data", "first", "last"),
    [
        pytest.param(encoded(Image.new("L", (3, 2), 77)), (77,) * 3, (77,) * 3, id="greyscale"),
        pytest.param(encoded(Image.new("1", (3, 2), 1)), (255,) * 3, (255,) * 3, id="bilevel"),
        pytest.param(palette(transparent=False), BLUE, RED, id="palette"),
        pytest.param(palette(transparent=True), (255,) * 3, RED, id="palette with a transparent colour"),
        pytest.param(
            encoded(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"), RED, RED, id="CMYK in TIFF"
        ),
        pytest.param(encoded(Image.new("RGBA", (3, 2), (*RED, 255))), RED, RED, id="opaque alpha"),
        pytest.param(encoded(Image.new("RGBA", (3, 2), (0, 0, 0, 0))), (255,) * 3, (255,) * 3, id="alpha"),
        pytest.param(encoded(Image.new("LA", (3, 2), (0, 0))), (255,) * 3, (255,) * 3, id="grey alpha"),
        pytest.param(encoded(Image.new("RGB", (1, 1), RED)), RED, RED, id="one pixel"),
        pytest.param(png16(np.full((2, 3), 0x8080), 0), (128,) * 3, (128,) * 3, id="16-bit greyscale"),
        pytest.param(
            encoded(Image.fromarray(np.full((2, 3), 0x8080, np.uint16)), "TIFF"),
            *((128,) * 3, (128,) * 3),
            id="16-bit greyscale TIFF",
        ),
        pytest.param(png16(np.full((2, 3, 3), 0x8080), 2), (128,) * 3, (128,) * 3, id="16-bit colour"),
    ],
)
def test_each_kind_of_image_is_shown_as_it_is_meant(data, first, last):
    assert shown(data) == (first, last)


def test_a_cmyk_photo_keeps_its_colours():
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(np.subtract(shown(data)[0], RED)).max() < 5


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (4, 2)), (6, (2, 0)), (8, (0, 4))])
def test_a_photo_taken_sideways_is_turned_upright(orientation, corner):
    image = Image.new("RGB", (5, 3))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif)
    upright = decode_image("a", data)
    assert upright.size == check_image("a", data) == ((3, 5) if orientation > 4 else (5, 3))
    assert upright.getpixel(corner) == (255, 255, 255)


def reason(data, **settings):
    with pytest.raises(ImageError, match=r"^a/b\.png: the image ") as caught:
        check_image("a/b.png", data, **settings)
    return caught.value.reason


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM"])
def test_a_truncated_image_is_rejected(format):
    data = encoded(noise(), format)
    assert reason(data[:0]) == "empty"
    for length in (1, 8, 20, len(data) // 2, len(data) - 20):
        assert reason(data[:length]) in ("truncated", "undecodable")
    if format == "JPEG":
        assert reason(data[: len(data) // 2]) == "truncated"


def test_a_corrupted_image_is_rejected():
    data = bytearray(encoded(noise()))
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data)) == "undecodable"


def test_what_is_no_image_is_called_so():
    with pytest.raises(ImageError, match=r"^a/b\.png: .* in no known image format"):
        check_image("a/b.png", b"<html>not found</html>")


def test_a_decompression_bomb_is_rejected_before_it_is_decoded():
    bomb = encoded(Image.new("1", (30_000, 30_000)))
    assert len(bomb) < 200_000
    assert reason(bomb) == "too_large"
    assert reason(encoded(noise((11, 10))), max_pixels=109) == "too_large"
    assert check_image("a", encoded(noise((11, 10))), max_pixels=110) == (11, 10)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_an_unknown_range_are_rejected(mode):
    data = encoded(Image.new(mode, (3, 2)), "TIFF")
    assert reason(data) == "unsupported"
    with pytest.raises(ImageError, match="8 or 16 bits"):
        decode_image("a", data)


def test_a_postscript_file_is_not_interpreted():
    assert reason(encoded(noise(), "EPS")) == "undecodable"


@pytest.mark.parametrize("data", [b"", b"no image", encoded(noise())[:-400]])
def test_what_does_not_decode_names_the_sample_and_the_remedy(data):
    with pytest.raises(
        ImageError, match=r"^d/a\.png: the image does not decode .* ingest the data set again"
    ):
        decode_image("d/a.png", data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_any_viewer_shows_rightly_is_shown_untouched(format, mode):
    data = encoded(noise().convert(mode), format)
    assert viewable("a", data) == (f"image/{format.lower()}", data)


def sideways():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise((7, 5)), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        sideways(),
        palette(transparent=True),
        encoded(noise(), "BMP"),
        encoded(noise(), "TIFF"),
        encoded(noise().convert("CMYK"), "JPEG"),
        png16(np.full((2, 3), 40_000, np.uint16), 0),
    ],
    ids=["sideways", "transparent", "bmp", "tiff", "cmyk", "16 bits"],
)
def test_what_viewers_may_show_otherwise_is_shown_as_it_is_decoded(data):
    kind, shown_data = viewable("a", data)
    assert kind == "image/png"
    assert decode_image("a", shown_data).tobytes() == decode_image("a", data).tobytes()


def test_what_is_no_image_cannot_be_shown():
    with pytest.raises(ImageError, match="a: the image does not decode"):
        viewable("a", b"<html>")
