"""Encoded images: checked once, when a data set is ingested, and decoded one way everywhere."""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

# What ImageFolder takes, and GIF, which is found under their names. Naming the formats keeps Pillow
# from handing a file of another kind to an interpreter (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Decoded, about 200 MB; the largest photos of the benchmark have half of that.
MAX_PIXELS = 64_000_000
# Beyond it Pillow itself takes an image for an attack.
MOST_PIXELS = 178_956_970
# Qwen2-VL's processor refuses images of this ratio of sides and beyond; others make a line of them.
MAX_ASPECT_RATIO = 200
# A white page is what a drawing with a transparent background was made for.
_BACKGROUND = "white"
# What EXIF's orientations do to the stored pixels; any other value means nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
# Kinds of files that are found under the names of images and archives, by how they begin.
_FOREIGN = (
    (b"version https://git-lfs.github.com/", "a pointer file of Git LFS (git lfs pull fetches the file)"),
    (b"/annex/objects/", "a pointer file of git-annex (git annex get fetches the file)"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"<svg", "an SVG drawing"),
    (b"%pdf", "a PDF document"),
)


class ImageError(ValueError):
    """Bytes are no image to train on. ``reason`` is a short machine-readable word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def check_image(sample_id: str, data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Decode an image to its last pixel and return the width and height that ``decode_image`` gives.

    Raises:
        ImageError: when it does not decode, or not to what it shows, with ``reason`` one of ``empty``,
            ``undecodable``, ``truncated``, ``too_large``, ``aspect_ratio`` and ``unsupported``; the message
            names the id and what is wrong.
    """
    if not data:
        raise ImageError("empty", f"{sample_id}: the image has no bytes")
    with _failures_named(sample_id, data):
        with _open(data) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    "too_large",
                    f"{sample_id}: the image has {width} x {height} pixels; at most {max_pixels} are decoded"
                    "; make it smaller, or raise --max-pixels",
                )
            if max(width, height) >= MAX_ASPECT_RATIO * min(width, height):
                raise ImageError(
                    "aspect_ratio",
                    f"{sample_id}: the image has {width} x {height} pixels; models take sides of a ratio "
                    f"below 1:{MAX_ASPECT_RATIO}; crop it",
                )
            image.verify()
        # Verifying looks at checksums and consumes the file; only loading decodes the pixels.
        with _open(data) as image:
            _check_mode(sample_id, image)
            _to_rgb(image)
            if image.format == "PNG":
                _check_rows(sample_id, data)
            sideways = _orientation(image) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def decode_image(sample_id: str, data: bytes) -> Image.Image:
    """Encoded bytes to an upright RGB image: 8 bits a channel, what is transparent on white.

    Without the file's metadata: vLLM would turn an upright image once more by the orientation that it finds
    there, and take two images for one that have the same ImageID.
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/multimodal/parse.py#L773
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/multimodal/hasher.py#L72-L83

    Raises:
        ImageError: when the bytes are no image; the message names the sample.
    """
    remedy = "; ingest the data set again, which rejects and lists such rows"
    with _failures_named(sample_id, data, remedy), _open(data) as image:
        _check_mode(sample_id, image)
        upright = _to_rgb(image)
        turn = _TURNS.get(_orientation(image))
        upright = upright if turn is None else upright.transpose(turn)
        return Image.frombytes(upright.mode, upright.size, upright.tobytes())


def viewable(sample_id: str, data: bytes) -> tuple[str, bytes]:
    """An encoding which any viewer shows as ``decode_image`` decodes it, with its MIME type.

    The bytes themselves where they are such a one, otherwise a PNG.

    Raises:
        ImageError: as ``decode_image``.
    """
    with _failures_named(sample_id, data), _open(data) as image:
        upright = _orientation(image) not in _TURNS
        opaque = image.mode in ("L", "RGB") and not image.has_transparency_data
        still = getattr(image, "n_frames", 1) == 1
        if upright and opaque and still and image.format in ("JPEG", "PNG", "WEBP"):
            return f"image/{image.format.lower()}", data
    sink = io.BytesIO()
    decode_image(sample_id, data).save(sink, "PNG")
    return "image/png", sink.getvalue()


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def foreign_kind(start: bytes) -> str | None:
    """What a file is that begins so and is neither an image nor an archive; None where that is not told."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind in _FOREIGN:
        if text.startswith(beginning):
            return kind
    if b"<html" in text[:1024]:
        return "a web page"
    if start[4:8] == b"ftyp":
        return f"a file of the kind {start[8:12].decode('ascii', 'replace')} (HEIC, AVIF or a film)"
    return None


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where there is none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    # A broken block makes the reader fail in many ways, and viewers show the image all the same.
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """The first frame's pixels as they are stored, in RGB."""
    _scale_transparency(image)
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts off at 255 instead of scaling.
        deep = np.asarray(image)
        grey = (deep // 257).astype(np.uint8)
        if "transparency" in image.info:
            grey[deep == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        page = Image.new("RGBA", pixels.size, _BACKGROUND)
        page.alpha_composite(pixels)
        image = page
    return image.convert("RGB")


def _scale_transparency(image: Image.Image) -> None:
    """Load the pixels, and bring the colour that stands for transparent to their 8 bits.

    Pillow takes a PNG's colour as it is written, but scales pixels of 2 and 4 bits, and cuts RGB of 16 bits.
    """
    tiles = getattr(image, "tile", ())  # gone once the pixels are loaded
    raw = str(tiles[0].args) if tiles else ""
    image.load()
    colour = image.info.get("transparency")
    if isinstance(colour, tuple) and raw.startswith("RGB;16"):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif isinstance(colour, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = colour * (85 if raw == "L;2" else 17)


def _check_mode(sample_id: str, image: Image.Image) -> None:
    # Of 16 bits in a PGM file Pillow makes 32, scaled to 16.
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ImageError(
            "unsupported",
            f"{sample_id}: the image has 32 bits a pixel, and which value is white is not known; "
            "save it with 8 or 16 bits a channel",
        )
    if image.mode.startswith("I;16") and isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow reads these values as they are written, which shows an image too dark, or its negative.
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
        if tuple(bits) != (16,) or image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            raise ImageError(
                "unsupported",
                f"{sample_id}: the image has {bits[0]} bits a pixel, and white is not their largest value of "
                "16 bits; save it with 8 bits a channel",
            )


# Where the seven passes of an interlaced PNG begin, and their steps, in x and y.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# By a PNG's type of colour.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PIECE = 1 << 20


def _check_rows(sample_id: str, data: bytes) -> None:
    """Reject a PNG whose data ends before its last row, which Pillow leaves black."""
    if data[12:16] != b"IHDR":
        return
    width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))
    bits = data[24] * _CHANNELS[data[25]]
    passes = _PASSES if data[28] else ((0, 0, 1, 1),)
    expected = 0
    for x, y, across, down in passes:
        columns, rows = -(-max(0, width - x) // across), -(-max(0, height - y) // down)
        expected += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    found, unpacking, place = 0, zlib.decompressobj(), 8
    while place + 8 <= len(data) and found < expected:
        size, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        if kind == b"IDAT":
            packed = data[place + 8 : place + 8 + size]
            # In pieces: a few bytes may unpack to gigabytes.
            while found < expected and not unpacking.eof:
                piece = unpacking.decompress(packed, _PIECE)
                found += len(piece)
                packed = unpacking.unconsumed_tail
                if not packed and len(piece) < _PIECE:
                    break
        place += 12 + size
    if found < expected:
        raise ImageError("truncated", f"{sample_id}: the image is truncated: it has not all of its rows")


@contextmanager
def _failures_named(sample_id: str, data: bytes, remedy: str = "") -> Iterator[None]:
    """Let every failure of a decoder end as an ImageError with the sample's id."""
    try:
        yield
    except ImageError:
        raise
    # Broken bytes make a decoder fail in many ways (OSError, struct.error, zlib.error, ...); each of
    # them says the same of the image, so all of them are caught.
    except Exception as error:
        text = str(error)
        if isinstance(error, UnidentifiedImageError):
            kind = foreign_kind(data[:4096])
            text = f"it is {kind}" if kind else "it is in no known image format"
        reason = "undecodable"
        if isinstance(error, Image.DecompressionBombError):
            reason = "too_large"
        elif "truncated" in text.lower():
            reason = "truncated"
        raise ImageError(reason, f"{sample_id}: the image does not decode ({text}){remedy}") from error
