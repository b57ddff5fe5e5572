"""Inputs that nobody thought of: what reads them returns, or says what is wrong; no traceback, no hang.

Hypothesis draws the same inputs in every run (``derandomize``). Files are made by damaging good ones, which
reaches further than noise does.
"""

import io
import json
import random
import tarfile
import zipfile
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from rdmldg_ray.chains.format import SECTIONS, TAGS, judge_text, match_class, normalize_answer, render_chain
from rdmldg_ray.config.load import ConfigError, dump_config, load_config, parse_config
from rdmldg_ray.datasets.images import ImageError, check_image, decode_image, viewable
from rdmldg_ray.datasets.ingest.opening import plan_source
from rdmldg_ray.datasets.ingest.rows import RowError, check_row
from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.storage import read_table

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # what fails is short enough, and making it shorter takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
WORDS = [
    "dog",
    "Dog ",
    "d\u006fg",
    "cafe\u0301",
    "café",
    "C++",
    "C#",
    "a|b",
    "[/b]",
    "no",
    "1e5",
    "ﬁg",
    "İ",
    "\u0131",
    "\u200b",
]
WORDS += [
    "../x",
    "",
    " ",
    "\x00",
    "\ud800",
    "<image>",
    *TAGS,
    "null",
    "2024-05-01",
    "😀",
    "a,b",
    "a+b",
    "\n",
    "'",
    '"',
]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=6).map("".join)
names = st.lists(texts, min_size=1, max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@contextmanager
def or_refused(error, word):
    """What is done in the block is done, or ends in an error of this kind whose message has the word."""
    try:
        yield
    except error as raised:
        if word not in str(raised):
            raise AssertionError(f"does not name {word!r}: {raised}") from raised


def damaged(data, seed):
    """A file with bytes changed, cut out, doubled or cut off: what bad disks, networks and people make."""
    chance = random.Random(seed)
    data = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place, length = chance.randrange(len(data) + 1), chance.choice([1, 1, 4, 64])
        kind = chance.randrange(5)
        if kind == 0:
            data[place : place + length] = chance.randbytes(length)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3:
            data[place : place + 4] = chance.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
        elif chance.random() < 0.2:
            del data[place:]
    return bytes(data)


seeds = st.integers(0, 10**6)


@FUZZ
@given(texts, texts, names)
def test_a_verdict_of_any_text_is_sound(text, label, classes):
    verdict = judge_text(text, label, classes)
    assert not verdict.accepted or normalize_answer(verdict.conclusion) == normalize_answer(label)
    found = match_class(text, classes)
    assert found is None or 0 <= found < len(classes)


@FUZZ
@given(st.sampled_from(WORDS), st.sampled_from(WORDS))
def test_a_chain_is_accepted_for_the_label_that_it_concludes_with_and_no_other(label, other):
    chain = render_chain(dict.fromkeys(SECTIONS, "It is so.") | {SECTIONS[-1]: other})
    if judge_text(chain, label, [label, other]).accepted:
        assert match_class(other, [label, other]) == match_class(label, [label, other])


@FUZZ
@given(st.dictionaries(st.sampled_from(["image", "question", "options", "answer", "domain", "x"]), plain))
def test_a_row_is_read_or_refused(row):
    with or_refused(RowError, ""):
        found = check_row(row)
        assert found.answer in found.options and not found.image.startswith(("/", ".."))


KEYS = ["name", "data.held_out", "data.dataset", "mtct.epochs", "mtct.weights.direct", "sarr.rounds", "lora"]
KEYS += [
    "lora.parts",
    "sarr.filter.max_tokens",
    "model.mm_processor_kwargs",
    "tracking",
    "x",
    "name.x",
    "",
    ".",
]


@FUZZ
@given(st.sampled_from(KEYS), texts | plain.map(lambda value: json.dumps(value, ensure_ascii=False)))
def test_an_override_is_taken_or_refused_with_its_key(key, value):
    with or_refused(ConfigError, key):
        config = load_config("demo", [f"{key}={value}"])
        assert parse_config(dump_config(config)) == config


RECIPE = dump_config(load_config("demo")).encode()


@FUZZ
@given(seeds)
def test_a_damaged_recipe_is_read_or_named(tmp_path, seed):
    file = tmp_path / "mine.yaml"
    file.write_bytes(damaged(RECIPE, seed))
    with or_refused(ConfigError, "mine.yaml"):
        load_config(str(file))


def image_files():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8))
    forms = [("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK")]
    forms += [("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("TIFF", "RGB"), ("PPM", "L")]
    for form, mode in forms:
        shown = picture.convert("L").convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)
        written = io.BytesIO()
        shown.save(written, form)
        yield written.getvalue()


IMAGES = list(image_files())


@settings(FUZZ, max_examples=400)
@given(st.sampled_from(IMAGES), seeds)
def test_a_damaged_image_is_rejected_or_decodes_to_its_size(image, seed):
    data = damaged(image, seed)
    with or_refused(ImageError, "art/dog/1.png"):
        size = check_image("art/dog/1.png", data)
        decoded = decode_image("art/dog/1.png", data)
        assert (decoded.mode, decoded.size) == ("RGB", size)
        viewable("art/dog/1.png", data)


def archives():
    members = {f"photo/{name}/{i}.png": IMAGES[0] for name in ("dog", "cat") for i in range(3)}
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return {"zip": zipped.getvalue(), "tar": tarred.getvalue()}


ARCHIVES = archives()


@FUZZ
@given(st.sampled_from(sorted(ARCHIVES)), seeds)
def test_a_damaged_archive_is_planned_or_named(tmp_path, kind, seed):
    file = tmp_path / f"data.{kind}"
    file.write_bytes(damaged(ARCHIVES[kind], seed))
    with or_refused(ValueError, "data."):
        plan_source(str(file), str(tmp_path / "store"), "mine")


STATE = {"mtct": {"seconds": 1.0, "samples": 10}, "evaluation/mtct": {"seconds": 2.0, "accuracy": {}}}


@FUZZ
@given(seeds, st.sampled_from(["state.json", "config.yaml"]))
def test_a_damaged_state_of_a_run_is_read_or_named(tmp_path, seed, name):
    run = RunStore(str(tmp_path), "mine")
    (tmp_path / "runs/mine/config.yaml").unlink(missing_ok=True)
    run.write_config(load_config("demo", ["name=mine"]))
    (tmp_path / "runs/mine/flat").mkdir(exist_ok=True)
    state = tmp_path / "runs/mine/flat/state.json"
    state.write_text(json.dumps({"version": 1, "stages": STATE}))
    damage = state if name == "state.json" else tmp_path / "runs/mine/config.yaml"
    damage.write_bytes(damaged(damage.read_bytes(), seed))
    with or_refused(ValueError, name):
        run.read_config()
        run.state()


def table():
    written = io.BytesIO()
    columns = {"id": ["a", "b"], "text": ["x", None], "scores": [[1.0], []], "image": [b"1", b"2"]}
    pq.write_table(pa.table(columns), written)
    return written.getvalue()


TABLE = table()


@FUZZ
@given(seeds)
def test_a_damaged_table_is_read_or_named(tmp_path, seed):
    file = tmp_path / "part-00000.parquet"
    file.write_bytes(damaged(TABLE, seed))
    with or_refused(ValueError, "part-00000.parquet"):
        read_table(str(file)).to_pylist()


@pytest.mark.parametrize("depth", [10, 10_000])
def test_deep_nesting_is_refused_as_anything_else(depth):
    with pytest.raises(ConfigError):
        load_config("demo", [f"name={'[' * depth}"])
