"""DomainBed's training augmentation, for PIL images, from an explicit random generator.

DomainBed trains on random resized crops (70 to 100 % of the area), horizontal flips, colour jitter
of 0.3 in brightness, contrast, saturation and hue, and random greyscale (10 %).

Why not torchvision's transforms? They draw from torch's global generator, while a sample's augmentation here
is a function of seed, epoch and sample; and torchvision has no build on PyPI that goes with torch for CPUs.
https://github.com/pytorch/vision/issues/9085
"""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_CROP_AREA = (0.7, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_JITTER = 0.3
_GREYSCALE = 0.1


def augment_image(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An augmented RGB image of the same size."""
    image = _random_resized_crop(image, rng)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    image = _shift_hue(image, rng.uniform(-_JITTER, _JITTER))
    if rng.random() < _GREYSCALE:
        image = ImageOps.grayscale(image).convert("RGB")
    return image


def _random_resized_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    area = width * height * rng.uniform(*_CROP_AREA)
    ratio = math.exp(rng.uniform(*np.log(_CROP_RATIO)))
    w = min(width, max(1, round(math.sqrt(area * ratio))))
    h = min(height, max(1, round(math.sqrt(area / ratio))))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Turn the hue by a share of the full circle, between -0.5 and 0.5."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = hue.point([round(level + 255 * turns) % 256 for level in range(256)])
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")
