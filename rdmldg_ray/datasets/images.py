"""Encoded images: checked once, when a data set is ingested, and decoded one way everywhere."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# What ImageFolder takes, and GIF, which is found under their names. Naming the formats keeps Pillow
# from handing a file of another kind to an interpreter (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Decoded, about 200 MB; the largest photos of the benchmark have half of that.
MAX_PIXELS = 64_000_000
# A white page is what a drawing with a transparent background was made for.
_BACKGROUND = "white"


class ImageError(ValueError):
    """Bytes are no image to train on. ``reason`` is a short machine-readable word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def check_image(sample_id: str, data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Decode an image to its last pixel and return the width and height that ``decode_image`` gives.

    Raises:
        ImageError: when it does not decode, or not to what it shows, with ``reason`` one of ``empty``,
            ``undecodable``, ``truncated``, ``too_large`` and ``unsupported``; the message names the id
            and what is wrong.
    """
    if not data:
        raise ImageError("empty", f"{sample_id}: the image has no bytes")
    with _failures_named(sample_id):
        with _open(data) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    "too_large",
                    f"{sample_id}: the image has {width} x {height} pixels; at most {max_pixels} are decoded",
                )
            image.verify()
        # Verifying looks at checksums and consumes the file; only loading decodes the pixels.
        with _open(data) as image:
            image.load()
            _check_mode(sample_id, image)
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if sideways else (width, height)


def decode_image(sample_id: str, data: bytes) -> Image.Image:
    """Encoded bytes to an upright RGB image: 8 bits a channel, what is transparent on white.

    Raises:
        ImageError: when the bytes are no image; the message names the sample.
    """
    remedy = "; ingest the data set again, which rejects and lists such rows"
    with _failures_named(sample_id, remedy), _open(data) as image:
        _check_mode(sample_id, image)
        return _to_rgb(ImageOps.exif_transpose(image))


def viewable(sample_id: str, data: bytes) -> tuple[str, bytes]:
    """An encoding which any viewer shows as ``decode_image`` decodes it, with its MIME type.

    The bytes themselves where they are such a one, otherwise a PNG.

    Raises:
        ImageError: as ``decode_image``.
    """
    with _failures_named(sample_id), _open(data) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        opaque = image.mode in ("L", "RGB") and not image.has_transparency_data
        if upright and opaque and image.format in ("JPEG", "PNG", "WEBP"):
            return f"image/{image.format.lower()}", data
    sink = io.BytesIO()
    decode_image(sample_id, data).save(sink, "PNG")
    return "image/png", sink.getvalue()


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        page = Image.new("RGBA", pixels.size, _BACKGROUND)
        page.alpha_composite(pixels)
        image = page
    return image.convert("RGB")


def _check_mode(sample_id: str, image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise ImageError(
            "unsupported",
            f"{sample_id}: the image has 32 bits a pixel, and which value is white is not known; "
            "save it with 8 or 16 bits a channel",
        )


@contextmanager
def _failures_named(sample_id: str, remedy: str = "") -> Iterator[None]:
    """Let every failure of a decoder end as an ImageError with the sample's id."""
    try:
        yield
    except ImageError:
        raise
    # Broken bytes make a decoder fail in many ways (OSError, struct.error, zlib.error, ...); each of
    # them says the same of the image, so all of them are caught.
    except Exception as error:
        text = "it is in no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = "undecodable"
        if isinstance(error, Image.DecompressionBombError):
            reason = "too_large"
        elif "truncated" in text.lower():
            reason = "truncated"
        raise ImageError(reason, f"{sample_id}: the image does not decode ({text}){remedy}") from error
