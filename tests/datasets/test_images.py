import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from rdmldg_ray.datasets.images import ImageError, check_image, decode_image, viewable

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image, format="PNG", **settings):
    sink = io.BytesIO()
    image.save(sink, format, **settings)
    return sink.getvalue()


def noise(size=(64, 64)):
    return Image.effect_noise(size, 50).convert("RGB")


def png16(values, colour_type, transparent=None):
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""
    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return png(width, height, 16, colour_type, lines, transparent)


def png(width, height, bits, colour_type, lines, transparent=None):
    """A PNG of these lines, each after its filter's byte; ``transparent`` is a colour, or opacities."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    colours = [chunk(b"PLTE", bytes([*RED, *BLUE]))] if colour_type == 3 else []
    clear = [] if transparent is None else [chunk(b"tRNS", transparent)]
    data = [chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *colours, *clear, *data])


def grey(*values):
    return struct.pack(f">{len(values)}H", *values)


WHITE = (255,) * 3


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
        pytest.param(
            png16(np.array([[0x8080, 0x1234]]), 0, grey(0x8080)),
            WHITE,
            (18,) * 3,
            id="16-bit grey, transparent",
        ),
        pytest.param(
            png16(np.array([[0, 0x8080]]), 0, grey(0)), WHITE, (128,) * 3, id="16-bit grey, transparent black"
        ),
        pytest.param(
            png16(np.array([[[0x1234] * 3, [0x5678] * 3]]), 2, grey(*[0x1234] * 3)),
            *(WHITE, (0x56,) * 3),
            id="16-bit colour, transparent",
        ),
        pytest.param(png(2, 1, 8, 0, b"\0\x05\x09", grey(5)), WHITE, (9,) * 3, id="8-bit grey, transparent"),
        pytest.param(png(2, 1, 4, 0, b"\0\x59", grey(5)), WHITE, (153,) * 3, id="4-bit grey, transparent"),
        pytest.param(png(2, 1, 2, 0, b"\0\x60", grey(1)), WHITE, (170,) * 3, id="2-bit grey, transparent"),
        pytest.param(
            png(2, 1, 8, 3, b"\0\0\1", b"\x80"), (255, 127, 127), BLUE, id="palette, half transparent"
        ),
        pytest.param(b"P5 2 1 65535\n" + grey(0x8080, 0xFFFF), (128,) * 3, WHITE, id="16-bit PGM"),
        pytest.param(b"P5 2 1 1023\n" + grey(0, 1023), (0,) * 3, WHITE, id="10-bit PGM"),
        pytest.param(b"P2 2 1 65535\n0 65535\n", (0,) * 3, WHITE, id="16-bit PGM in text"),
        pytest.param(
            b"P6 1 1 65535\n" + grey(0x8080, 0, 0xFFFF), (128, 0, 255), (128, 0, 255), id="16-bit PPM"
        ),
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


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_ignored_everywhere(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise((5, 3))
    data, plain = encoded(image, format, exif=exif), encoded(image, format)
    assert check_image("a", data) == (5, 3)
    assert decode_image("a", data).tobytes() == decode_image("a", plain).tobytes()
    assert viewable("a", data)[1] == data


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_no_metadata_remains_by_which_others_would_turn_it_again(orientation, format):
    exif = Image.Exif()
    exif[0x0112], exif[Image.ExifTags.Base.ImageID] = orientation, "the same for all"
    upright = decode_image("a", encoded(noise((5, 3)), format, exif=exif))
    assert dict(upright.getexif()) == upright.info == {}
    assert ImageOps.exif_transpose(upright).tobytes() == upright.tobytes()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_broken_exif_block_does_not_matter(format):
    data = encoded(noise((5, 3)), format, exif=b"Exif\0\0no such thing")
    assert check_image("a", data) == decode_image("a", data).size == (5, 3)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_of_several_frames_the_first_is_shown_everywhere(format):
    second = [Image.new("RGB", (6, 4), BLUE)]
    settings = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.new("RGB", (6, 4), RED), format, save_all=True, append_images=second, **settings)
    assert shown(data) == (RED, RED)
    kind, seen = viewable("a", data)
    assert kind == "image/png" and getattr(Image.open(io.BytesIO(seen)), "n_frames", 1) == 1
    assert shown(seen) == (RED, RED)


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (1, 5000), (30, 7000), (20_000, 2)])
def test_sides_of_a_ratio_that_processors_refuse_are_rejected(size):
    data = encoded(Image.new("RGB", size))
    assert reason(data) == "aspect_ratio"
    with pytest.raises(ImageError, match="below 1:200; crop it"):
        check_image("a", data)


@pytest.mark.parametrize("size", [(1, 1), (1, 199), (199, 1), (1990, 10)])
def test_other_narrow_images_are_taken(size):
    assert check_image("a", encoded(Image.new("RGB", size))) == size


# Bits and channels by each type of colour that PNG has.
DEPTHS = [(1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (1, 3, 1)]
DEPTHS += [(4, 3, 1), (8, 3, 1), (8, 4, 2), (16, 4, 2), (8, 6, 4), (16, 6, 4)]


@pytest.mark.parametrize(("bits", "colour_type", "channels"), DEPTHS)
@pytest.mark.parametrize(("width", "height"), [(5, 4), (9, 17), (1, 2), (20, 20)])
def test_a_png_with_too_few_rows_is_truncated(width, height, bits, colour_type, channels):
    row = bytes(1 + (width * bits * channels + 7) // 8)
    assert check_image("a", png(width, height, bits, colour_type, row * height)) == (width, height)
    for rows in (height - 1, height // 2):
        assert reason(png(width, height, bits, colour_type, row * rows)) == "truncated"


def test_a_png_of_one_colour_has_all_of_its_rows():
    image = Image.new("RGB", (3000, 2000), RED)
    assert check_image("a", encoded(image, compress_level=9)) == (3000, 2000)


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


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"some text", "in no known image format"),
        (b"<html>not found</html>", "a web page"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML PUBLIC>", "a web page"),
        (b"<!-- gone --><HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer file of Git LFS"),
        (b"/annex/objects/SHA256E-s1--00.png", "a pointer file of git-annex"),
        (b"<?xml version='1.0'?><Error>", "an XML document"),
        (b"<svg/>", "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", r"a file of the kind heic \(HEIC, AVIF"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(data, kind):
    with pytest.raises(ImageError, match=rf"^a/b\.png: the image does not decode \(it is {kind}"):
        check_image("a/b.png", data)


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


def tiff(bits, photometric, row):
    """A grayscale TIFF of two rows, without compression."""
    data = row * 2
    tags = {256: 8 * len(row) // bits, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 2}
    tags |= {279: len(data)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


@pytest.mark.parametrize(
    ("bits", "photometric", "row", "gray"),
    [
        (16, 1, b"\0\0\xff\xff", [0, 255]),
        (16, 0, b"\0\0\xff\xff", None),  # white is 0
        (12, 1, b"\0\0\0\xff\xff\xff", None),
        (8, 1, b"\x10\xff", [16, 255]),
        (8, 0, b"\x10\xff", [239, 0]),
        (4, 0, b"\x0f", [255, 0]),
    ],
)
def test_a_tiff_is_what_viewers_show_or_is_rejected(bits, photometric, row, gray):
    data = tiff(bits, photometric, row)
    if gray:
        assert np.asarray(decode_image("a", data))[0, :, 0].tolist() == gray
        return
    assert reason(data) == "unsupported"
    with pytest.raises(ImageError, match=f"has {bits} bits a pixel, .*; save it with 8 bits"):
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
