import colorsys

import numpy as np
import pytest
from PIL import Image

from rdmldg_ray.mtct.augment import _shift_hue, augment_image


def noise(width=48, height=32):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(48, 32), (1, 1), (200, 3)])
def test_an_augmented_image_is_rgb_of_the_same_size(size):
    for seed in range(20):
        augmented = augment_image(noise(*size), np.random.default_rng(seed))
        assert (augmented.mode, augmented.size) == ("RGB", size)


def test_the_same_generator_gives_the_same_image_and_another_gives_another():
    first, again, other = (
        augment_image(noise(), np.random.default_rng(seed)).tobytes() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_image_that_is_given_is_left_as_it_is():
    image = noise()
    before = image.tobytes()
    augment_image(image, np.random.default_rng(0))
    assert image.tobytes() == before


def test_flips_and_greys_come_as_often_as_domainbeds():
    # Dark left half, coloured light right half: a flip shows in brightness, grey in saturation.
    image = Image.new("RGB", (16, 16), (40, 10, 10))
    image.paste((90, 200, 110), (8, 0, 16, 16))
    flipped = grey = 0
    for seed in range(400):
        pixels = np.asarray(augment_image(image, np.random.default_rng(seed))).astype(int)
        flipped += pixels[:, :3].sum() > pixels[:, -3:].sum()
        grey += bool((pixels == pixels[:, :, :1]).all())
    assert 160 < flipped < 240
    assert 20 < grey < 65


def test_a_shift_turns_the_hue_by_its_share_of_the_circle():
    image = Image.new("RGB", (1, 1), (200, 40, 40))
    for turns, hue in ((0, 0), (1 / 3, 1 / 3), (-1 / 3, 2 / 3), (0.5, 0.5)):
        red, green, blue = (channel / 255 for channel in _shift_hue(image, turns).getpixel((0, 0)))
        shifted, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        assert min(abs(shifted - hue), 1 - abs(shifted - hue)) < 0.01
        assert saturation == pytest.approx(0.8, abs=0.02) and value == pytest.approx(200 / 255, abs=0.01)
