"""Other artists' drawings, rendered once to 96x96 arrays, compared with IconBed's, and augmented.

A picture has one or two views: as it was drawn, and, for coloured ones, as a line drawing made
from its SVG (every shape filled white with a black outline), which teaches the encoder that
both are the same thing.
"""

import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tools.tiny_base import classes, hashes, near, sources

SIZE = 96  # pixels, width and height of a picture
_MARGIN = 4  # pixels of white around the drawing, as in IconBed
_RENDERED = 224  # pixels, before trimming and scaling down
_SIDES = np.array([[4, 4], [92, 4], [4, 92]], np.float32)

# Styles that icon sets append to a name, and names of signs that show no thing.
_STYLE_WORDS = """
outline outlined filled fill thin solid regular color negative alt linear line lined rounded sharp twotone
"""
# Endings of further finishes of a drawing that is there already.
_SAME_DRAWING = (
    "-light", "-bold", "-broken", "-duotone", "-twotone", "-rounded", "-sharp", "-remix", "-off", "-slash",
)  # fmt: skip
_SIGN_WORDS = """
arrow arrows brand logo alpha numeric number letter align format border layout caret chevron square circle
rectangle hexagon triangle page view table grid text font sort filter api code file folder database git
github google facebook microsoft amazon apple twitter distribute rotate selection select signal battery
wifi network cast axis artboard brackets http html css sql json xml decimal math plus minus equal
alphabetical keyboard language message chat comment email mail emoticon phone cellphone dots zodiac box
medal cell column row currency hand user account playlist badge mood device clock calendar gender crypto
dice map pin toggle menu list link bookmark window panel screen monitor server cloud shield
"""

# Line sets of things; of others only those with a class word are taken, since most show no thing.
_THINGS = ("game-icons", "healthicons", "temaki", "maki")


@dataclass(frozen=True)
class Picture:
    """One drawing. ``concept`` is shared by all drawings of the same thing, in whatever set."""

    concept: str
    words: tuple[str, ...]  # keywords, or the words of the name
    group: str  # Unicode's subgroup, or "" for icons
    label: str  # a class word of `classes`, or ""
    iconbed: bool  # whether it is a concept of IconBed (another artist's drawing of it)
    source: str
    coloured: bool
    views: tuple[int, ...]  # rows of the array of views


def prepare(cache: Path, iconbed: Path, workers: int = 2) -> tuple[list[Picture], np.ndarray]:
    """All pictures and their views, uint8 [views, 96, 96, 3]; rendered at the first call, then read."""
    listing, array = cache / "pictures.json", cache / "views.npy"
    if not listing.exists():
        cache.mkdir(parents=True, exist_ok=True)
        drawings = list(_drawings(cache / "packages", iconbed))
        entries: list[dict[str, Any]] = []
        views: list[np.ndarray] = []
        check = near.Check(iconbed)
        with ProcessPoolExecutor(workers) as pool:
            for drawing, rendered in zip(drawings, pool.map(_views, drawings, chunksize=64), strict=True):
                if any(check.rejects(view, drawing) for view in rendered):
                    continue
                if rendered:
                    rows = tuple(range(len(views), len(views) + len(rendered)))
                    views.extend(rendered)
                    kept = ("concept", "words", "group", "label", "iconbed", "source", "coloured")
                    entries.append({key: drawing[key] for key in kept} | {"views": rows})
        np.save(array, np.stack(views))
        check.write(cache / "near.json")
        hashes.write(np.stack(views))
        listing.write_text(json.dumps(entries))
    pictures = [
        Picture(**entry | {"words": tuple(entry["words"]), "views": tuple(entry["views"])})
        for entry in json.loads(listing.read_text())
    ]
    return pictures, np.load(array, mmap_mode="r")


def _drawings(packages: Path, iconbed: Path) -> Iterator[dict[str, Any]]:
    """SVG bodies with names, in a fixed order."""
    styles, signs = set(_STYLE_WORDS.split()), set(_SIGN_WORDS.split())
    emojis = _emoji_names(sources.fetch(sources.EMOJI_NAMES, packages), iconbed)
    for source in sources.SOURCES:
        tarball = sources.fetch(source, packages)
        icons = sources.read_json(tarball, "icons.json")
        for name, icon in sorted(icons["icons"].items()):
            if any(icon.get(key) for key in ("hidden", "rotate", "hFlip", "vFlip")):
                continue
            if source.kind == "emoji":
                known = emojis.get(re.sub("[^a-z0-9]", "", name))
                if known is None:
                    continue
            else:
                words = [word for word in sources.name_words(name) if word not in styles and len(word) > 1]
                label = classes.of_icon(" ".join(words))
                sign = bool(signs & set(words)) and label not in classes.ICONBED
                if not words or sign or max(map(len, words)) < 3 or len(words) > 4:
                    continue
                if name.endswith(_SAME_DRAWING):
                    continue
                if source.kind == "line" and not label and not source.package.endswith(_THINGS):
                    continue
                known = {
                    "concept": " ".join(words), "words": words, "group": "", "label": label, "iconbed": False
                }  # fmt: skip
            box = [icon.get(key, icons.get(key, default)) for key, default in
                   (("left", 0), ("top", 0), ("width", 16), ("height", 16))]  # fmt: skip
            yield known | {
                "source": source.package.split("/")[1],
                "name": name,
                "coloured": source.kind != "line" and not source.package.endswith("monotone"),
                "box": box,
                "body": icon["body"],
            }


def _emoji_names(tarball: Path, iconbed: Path) -> dict[str, dict]:
    """From a name in letters and digits alone to its concept; flags and signs left out."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(iconbed, columns=["hexcode", "label"]).to_pylist()
    # The code points of IconBed may lack the variation selector FE0F that the list has, or have it.
    benchmark = {row["hexcode"].replace("-FE0F", ""): row["label"].replace("_", " ") for row in rows}
    meta = sources.read_json(tarball, "meta/groups.json")
    shortcodes = [
        sources.read_json(tarball, f"en/shortcodes/{name}.json")
        for name in ("cldr", "emojibase", "github", "iamcal")
    ]
    names: dict[str, dict] = {}
    for emoji in sources.read_json(tarball, "en/data.json"):
        group = meta["groups"].get(str(emoji.get("group")), "flags")
        subgroup = meta["subgroups"].get(str(emoji.get("subgroup")), "")
        if group in ("flags", "component") or subgroup in ("keycap", "alphanum"):
            continue
        spellings = {emoji["label"]}
        for codes in shortcodes:
            spelled = codes.get(emoji["hexcode"], [])
            spellings.update([spelled] if isinstance(spelled, str) else spelled)
        label = benchmark.get(emoji["hexcode"].replace("-FE0F", ""))
        entry = {
            "concept": emoji["label"].lower(),
            "words": emoji.get("tags", []),
            "group": subgroup,
            "label": label or classes.of_emoji(emoji["label"].lower(), subgroup),
            "iconbed": label is not None,
        }
        for spelling in spellings:
            names.setdefault(re.sub("[^a-z0-9]", "", spelling.lower()), entry)
    return names


def _views(drawing: dict) -> list[np.ndarray]:
    """The views of a drawing, uint8 [96, 96, 3] each; none if it cannot be drawn."""
    left, top, width, height = drawing["box"]
    bodies = [drawing["body"]]
    if drawing["coloured"]:
        bodies.append(_outlined(drawing["body"], 0.024 * max(width, height)))
    views = []
    for body in bodies:
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" color="#000">{body}</svg>'
        )
        view = _render(svg, width / height)
        if view is not None:
            views.append(view)
    return views


def _outlined(body: str, thickness: float) -> str:
    """The SVG with every filled shape white under a black outline, every stroke black."""
    body = re.sub(r'\b(fill|stroke)="(?!none)[^"]*"', "", body)
    body = re.sub(r'\b(fill-|stroke-|stop-)?opacity="[^"]*"', "", body)
    return f'<g fill="#fff" stroke="#000" stroke-width="{thickness:.3f}" stroke-linejoin="round">{body}</g>'


def _render(svg: str, aspect: float) -> np.ndarray | None:
    """Draw on white, trim to the drawing, and centre it on 96x96 with a border, as IconBed does."""
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=round(_RENDERED * min(1, aspect)), height=round(_RENDERED / max(1, aspect)),
            background="#ffffff", skip_system_fonts=True,
        )  # fmt: skip
    except ValueError:
        return None
    return trim(read_png(bytes(png)))


def trim(image: np.ndarray) -> np.ndarray | None:
    """Cut uint8 [h, w, 3] to its drawing and centre that on 96x96 white; None for an empty image."""
    ink = image.min(axis=2) < 247
    if ink.sum() < 0.005 * ink.size:
        return None
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = (SIZE - 2 * _MARGIN) / max(cut.shape[:2])
    width, height = (max(1, round(side * scale)) for side in (cut.shape[1], cut.shape[0]))
    small = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
    canvas = np.full((SIZE, SIZE, 3), 255, np.uint8)
    y, x = (SIZE - height) // 2, (SIZE - width) // 2
    canvas[y : y + height, x : x + width] = small
    return canvas


def augment(view: np.ndarray, random: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Another look at the same drawing: uint8 [96, 96, 3] to the same."""
    return augment_with_map(view, random, strength)[0]


def augment_with_map(
    view: np.ndarray, random: np.random.Generator, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Another look at the same drawing, uint8 [96, 96, 3], and where it came from: float32 [2, 3].

    The matrix takes a point (x, y, 1) of the result, in pixels, to the point of the view.

    Drawn lines (edges of the colours) in some, colours changed or gone in others, and all of them
    turned, scaled, stretched, moved and mirrored. ``strength`` 0 leaves the geometry as it is.
    """
    image = _restyle(view, random)
    mirrored = random.random() < 0.5
    if mirrored:
        image = image[:, ::-1]
    corners = _SIDES - 48
    angle = random.normal(0, 0.16 * strength)
    scale = np.exp(random.uniform(-0.32, 0.08) * strength)
    stretch = np.exp(random.normal(0, 0.08 * strength, 2)) * scale
    shear = random.normal(0, 0.08 * strength)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = corners @ (turn @ np.array([[stretch[0], shear], [0, stretch[1]]])).T
    corners = corners + 48 + random.normal(0, 2.5 * strength, 2)
    matrix = cv2.getAffineTransform(_SIDES, corners.astype(np.float32))
    image = cv2.warpAffine(np.ascontiguousarray(image), matrix, (SIZE, SIZE), borderValue=(255, 255, 255))
    if random.random() < 0.1:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    back = cv2.invertAffineTransform(matrix).astype(np.float32)
    if mirrored:
        back[0] = np.array([0, 0, SIZE - 1], np.float32) - back[0]
    return image, back


def _restyle(view: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change how a drawing is drawn, not what it shows."""
    draw = random.random()
    if draw < 0.22:
        return _thicken(_edges(view, random), random)
    image = _thicken(view, random) if random.random() < 0.3 else view
    if draw < 0.34:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if draw < 0.28:  # black and white alone, as solid icons
            grey = np.where(grey < random.integers(90, 215), 0, 255).astype(np.uint8)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    if draw < 0.70:
        # Hue and brightness of what is drawn; the white around it stays white.
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(random.normal(0, 9))) % 180
        gains = np.exp(random.normal(0, 0.22, 2))
        hsv[..., 1] = np.clip(hsv[..., 1] * gains[0], 0, 255)
        changed = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if random.random() < 0.5:
            tone = np.exp(random.normal(0, 0.3))
            table = (255 * (np.arange(256) / 255) ** tone).astype(np.uint8)
            changed = cv2.LUT(changed, table)
        if random.random() < 0.15:
            changed = cv2.addWeighted(changed, 0.6, cv2.GaussianBlur(changed, (0, 0), 4), 0.4, 0)
        return changed
    if draw < 0.75:  # dark lines in a colour of their own
        ink = random.integers(0, 160, 3)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] / 255
        return (255 * grey + ink * (1 - grey)).astype(np.uint8)
    return image


def _edges(view: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Black lines on white where colours meet."""
    smooth = cv2.GaussianBlur(view, (3, 3), 0)
    if random.random() < 0.5:
        low = int(random.integers(15, 60))
        edges = np.maximum.reduce([cv2.Canny(smooth[..., c], low, 2.5 * low) for c in range(3)])
        return cv2.cvtColor(255 - cv2.GaussianBlur(edges, (3, 3), 0.7), cv2.COLOR_GRAY2RGB)
    gradient = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)).max(axis=2)
    gain = random.uniform(2.0, 5.0)
    return cv2.cvtColor(
        (255 - np.clip(gain * gradient.astype(np.float32), 0, 255)).astype(np.uint8), cv2.COLOR_GRAY2RGB
    )


def _thicken(view: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Dark parts one pixel wider or narrower, or as they are."""
    draw = random.random()
    if draw < 0.4:
        return cv2.erode(view, np.ones((2, 2), np.uint8))
    if draw < 0.5:
        return cv2.erode(view, np.ones((3, 3), np.uint8))
    return view


def read_png(data: bytes) -> np.ndarray:
    """Encoded image to uint8 [h, w, 3], RGB."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
