import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdmldg_ray import storage
from rdmldg_ray.chains.export import export_chains
from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.chains.imports import import_chains
from rdmldg_ray.chains.prompts import reasoning_prompt
from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.datasets.builtin.questions import NAME as VQA
from rdmldg_ray.datasets.builtin.questions import iconbed_vqa_info, write_iconbed_vqa
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, dataset_location, info_location, read_dataset_info
from rdmldg_ray.storage import StorageError, join
from tools import mini

ID = "mini/flat/bird/1F414.png"
OTHER_ID = "mini/sketch/bird/1F414.png"
LABEL = "bird"
FORMS = pytest.mark.parametrize("form", ["sharegpt", "huggingface"])


@pytest.fixture
def written(root):
    """A root with the small data set, whose chains are both kept and rejected."""
    mini.write_mini(root)
    tables = {}
    for domain in mini.DOMAINS:
        rows = read_chains(root, "mini", "rules", [domain]).to_pylist()
        for row in rows[::3]:
            rejected = {"candidate": 1, "text": "no chain", "conclusion": None, "accepted": False}
            rows.append(row | rejected | {"reason": "missing_section"})
        tables[domain] = pa.Table.from_pylist(rows, schema=CHAIN_SCHEMA)
    write_chains(root, "mini", "gpt", tables)
    return root


@pytest.fixture
def local(tmp_path):
    mini.write_mini(str(tmp_path))
    return str(tmp_path)


def chains_of(root, source):
    table = read_chains(root, "mini", source, mini.DOMAINS).combine_chunks()
    assert table.schema.equals(CHAIN_SCHEMA)
    return table


def images_of(root):
    index = sample_index(root, read_dataset_info(root, "mini"), mini.DOMAINS)
    return dict(zip(index["id"].to_pylist(), index["sha256"].to_pylist(), strict=True))


def as_imported(table, images):
    """Rows as before an import that gave each the hash of its image."""
    rows = table.to_pylist()
    assert [row.pop("image_sha256") for row in rows] == [images[row["id"]] for row in rows]
    return [row | {"image_sha256": None} for row in rows]


@FORMS
def test_what_is_exported_comes_back_equal(written, form):
    place = join(written, "exported")
    assert export_chains(written, "mini", "gpt", place, form, only_accepted=False) == 120
    counts = import_chains(place, written, "mini", "back")
    assert counts == {"accepted": 90, "missing_section": 30}
    assert (
        as_imported(chains_of(written, "back"), images_of(written)) == chains_of(written, "gpt").to_pylist()
    )


@FORMS
def test_rejected_chains_stay_behind_unless_asked_for(local, form, tmp_path):
    [row] = read_chains(local, "mini", "rules", ["flat"]).slice(0, 1).to_pylist()
    rows = [row, row | {"candidate": 1, "accepted": False, "reason": "rejected"}]
    write_chains(local, "mini", "gpt", {"flat": pa.Table.from_pylist(rows, schema=CHAIN_SCHEMA)})
    assert export_chains(local, "mini", "gpt", str(tmp_path / "accepted"), form) == 1
    assert export_chains(local, "mini", "gpt", str(tmp_path / "all"), form, only_accepted=False) == 2


def test_the_sharegpt_form_is_what_llama_factory_reads(local, tmp_path):
    place = tmp_path / "exported"
    export_chains(local, "mini", "rules", str(place), "sharegpt")
    described = json.loads((place / "dataset_info.json").read_text())["mini_chains"]
    assert described["formatting"] == "sharegpt"
    columns, tags = described["columns"], described["tags"]
    lines = [json.loads(line) for line in (place / described["file_name"]).read_text().splitlines()]
    chains = {row["id"]: row for row in chains_of(local, "rules").to_pylist()}
    images = storage.read_table(join(dataset_location(local, "mini"), "samples"))
    bytes_of = dict(zip(images["id"].to_pylist(), images["image"].to_pylist(), strict=True))
    assert len(lines) == len(chains) == 90
    for line in lines:
        user, assistant = line[columns["messages"]]
        assert (user[tags["role_tag"]], assistant[tags["role_tag"]]) == (
            tags["user_tag"],
            tags["assistant_tag"],
        )
        assert user[tags["content_tag"]] == "<image>" + reasoning_prompt(mini.CLASSES)
        assert assistant[tags["content_tag"]] == chains[line["id"]]["text"]
        # Paths are relative to the folder of dataset_info.json.
        [image] = line[columns["images"]]
        assert (place / image).read_bytes() == bytes_of[line["id"]]


def test_hugging_faces_library_loads_the_folder(local, tmp_path):
    import datasets

    place = tmp_path / "exported"
    export_chains(local, "mini", "rules", str(place), "huggingface")
    loaded = datasets.load_dataset(str(place), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows.select_columns(CHAIN_SCHEMA.names).to_list() == chains_of(local, "rules").to_pylist()
    image = rows[0]["image"]
    assert isinstance(image, Image.Image) and image.size == (96, 96)
    assert rows[0]["domain"] == "flat" and rows[0]["label"] == "bird"


def test_an_export_does_not_mix_with_other_files(local, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").touch()
    with pytest.raises(ValueError, match="full: there are files here; export to an empty folder"):
        export_chains(local, "mini", "rules", str(tmp_path / "full"), "sharegpt")


def test_a_source_without_chains_is_named(local, tmp_path):
    with pytest.raises(StorageError, match=r"chains/gpt-4o: no chains for flat, paint, sketch; choose"):
        export_chains(local, "mini", "gpt-4o", str(tmp_path / "out"), "sharegpt")


# Chains made elsewhere.


def chain(conclusion=LABEL):
    return render_chain({**dict.fromkeys(SECTIONS, "Words."), "CONCLUSION": conclusion})


def line(text=None, image="/data/flat/bird/1F414.png", question="<image>What is it?", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": text or chain()}]
    return {"conversations": turns, "images": [image], **fields}


def import_lines(root, *lines, **settings):
    text = "\n".join(given if isinstance(given, str) else json.dumps(given) for given in lines)
    storage.write_bytes(join(root, "made/elsewhere.jsonl"), text.encode())
    return import_chains(join(root, "made/elsewhere.jsonl"), root, "mini", "elsewhere", **settings)


def test_chains_made_elsewhere_are_judged_by_their_samples_labels(local):
    counts = import_lines(local, line(), line(chain("Vehicle.")), "", line(chain("dinosaur")), line(id=ID))
    assert counts == {"accepted": 2, "wrong_class": 1, "not_a_class": 1}
    rows = chains_of(local, "elsewhere").to_pylist()
    assert [row["candidate"] for row in rows] == [0, 1, 2, 3]
    assert {(row["id"], row["model"], row["prompt_version"]) for row in rows} == {(ID, "elsewhere", None)}
    assert [row["conclusion"] for row in rows] == ["bird", "Vehicle.", "dinosaur", "bird"]
    assert [row["reason"] for row in rows] == [None, "wrong_class", "not_a_class", None]


def test_turns_may_be_messages_after_a_system_turn(local):
    turns = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "What is it? <image>"},
        {"role": "assistant", "content": chain()},
    ]
    assert import_lines(local, {"messages": turns, "images": [ID]}) == {"accepted": 1}


def test_a_table_of_ids_and_texts_is_enough(local, tmp_path):
    table = pa.table({"id": [ID, ID], "text": [chain(), chain("vehicle")], "more": [1, 2]})
    storage.write_table(str(tmp_path / "made/chains.parquet"), table)
    assert import_chains(str(tmp_path / "made"), local, "mini", "elsewhere") == {
        "accepted": 1,
        "wrong_class": 1,
    }


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", r"not JSON .*write one object"),
        ("[]", "not an object but a list; write one object on each line"),
        ({"images": [ID]}, "'messages' .*is not one question and one answer; write a turn"),
        ({**line(), "images": []}, "not one image; list one path in 'images'"),
        (line(question="What?"), "not one image; .* <image> once in the question"),
        (
            line(image="/data/other.png"),
            "no sample .* has the image '/data/other.png'; give an 'id'",
        ),
        (line(id="mini/x"), "no sample 'mini/x' in the data set mini; correct the id"),
        (
            line("It is a bird."),
            "the chain has no <SUMMARY>; mend the chain, remove it, or set its 'accepted'",
        ),
        (line(chain("")), "the section <CONCLUSION> is empty; mend"),
        (
            line(chain("vehicle"), accepted=True),
            "accepted, but concludes 'vehicle' where the label is 'bird'; set",
        ),
        (line(conclusion="vehicle"), "'conclusion' is 'vehicle', but the chain concludes 'bird'; correct"),
        (line(candidate="first"), "the field 'candidate' is 'first', which is no int; correct it"),
        (line(accepted="yes"), "the field 'accepted' is 'yes', which is no bool; correct it"),
        ({"messages": [{"role": "robot", "content": ""}]}, "a turn of 'robot' is not known"),
        ({"messages": "text"}, r"'messages' \(or 'conversations'\) is a text; write a list of turns"),
        ({"messages": 5}, "is an int; write a list of turns"),
        ({"messages": [5, None]}, "a turn is an int; write an object with 'role' and 'content'"),
        ({"messages": [{}]}, "a turn of 'None' is not known, or has no text"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "is not known, or has no text"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "is not known, or has no text"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "is not known, or has no text"),
        ({**line(), "images": [ID, ID]}, "not one image"),
        ({**line(), "images": 5}, "not one image"),
        (line(question="<image><image>?"), "not one image"),
        (line(id="mini/x", image=ID), "no sample 'mini/x'"),
        ({**line(id=7), "images": ["/data/other.png"]}, "no sample .* has the image '/data/other.png'"),
        ({**line(id=[1]), "images": []}, r"no sample \[1\] in the data set mini; correct the id"),
        ({**line(id={"a": 1}), "images": None}, "no sample {'a': 1} in"),
        (line(candidate=2**31), "the field 'candidate' is 2147483648, which is out of range"),
        (line(candidate=-1), "the field 'candidate' is -1, which is out of range; number from 0 on"),
        (line(candidate=-(10**30)), "the field 'candidate' is -1000.*, which is out of range"),
        (line(chain().replace("Words", "\ud800", 1)), "the field 'text' holds half a character"),
        (line(model="\udc00"), "the field 'model' holds half a character"),
        ('{"a": ' * 100_000, "is nested too deeply to be read; remove it"),
    ],
)
def test_a_bad_line_is_named_with_its_place_and_remedy_and_nothing_is_written(local, bad, problem):
    with pytest.raises(ValueError, match=rf"elsewhere\.jsonl, line 2: .*{problem}"):
        import_lines(local, line(), bad)
    with pytest.raises(StorageError):
        chains_of(local, "elsewhere")


def test_a_rejected_chain_may_be_of_any_form(local):
    assert import_lines(local, line(), line("no chain", accepted=False)) == {"accepted": 1, "rejected": 1}


def test_all_bad_lines_are_told_at_once_up_to_a_bound(local):
    with pytest.raises(ValueError, match="not imported") as caught:
        import_lines(local, *["{"] * 25)
    message = str(caught.value)
    assert "line 20: " in message and "line 21: " not in message and message.endswith("... and 5 more")


def test_two_chains_of_one_number_are_told(local):
    with pytest.raises(ValueError, match=r"line 2: candidate 3 of mini/.* is also in .*line 1; remove one"):
        import_lines(local, line(candidate=3), line(candidate=3))


def test_a_bad_row_of_a_table_is_named(local, tmp_path):
    table = pa.table({"id": [ID, ID], "text": [chain(), "x"]})
    storage.write_table(str(tmp_path / "made.parquet"), table)
    with pytest.raises(ValueError, match=r"made\.parquet, row 2: the chain has no <SUMMARY>"):
        import_chains(str(tmp_path / "made.parquet"), local, "mini", "elsewhere")
    storage.write_table(str(tmp_path / "made.parquet"), pa.table({"name": ["x"]}))
    with pytest.raises(ValueError, match=r"made\.parquet: has no columns 'id' and 'text', .*; it has: name"):
        import_chains(str(tmp_path / "made.parquet"), local, "mini", "elsewhere")
    storage.write_table(str(tmp_path / "made.parquet"), pa.table({"id": [ID, None], "text": [chain()] * 2}))
    with pytest.raises(ValueError, match=r"row 2: neither an 'id' nor an image's path; add one of them"):
        import_chains(str(tmp_path / "made.parquet"), local, "mini", "elsewhere")


def test_chains_of_a_source_are_replaced_only_when_told(local):
    import_lines(local, line())
    with pytest.raises(ValueError, match="chains/elsewhere: holds chains already; choose another name, or"):
        import_lines(local, line())
    import_lines(local, line(id=OTHER_ID), replace=True)
    assert chains_of(local, "elsewhere")["id"].to_pylist() == [OTHER_ID]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nothing.jsonl", "there is no such file or folder; correct the path"),
        ("nothing", "there is no such file or folder; correct the path"),
        ("file.txt", r"neither a \.jsonl, \.json or \.parquet file nor a folder of such files"),
        ("empty", r"neither a \.jsonl, \.json or \.parquet file nor a folder of such files"),
    ],
)
def test_a_place_without_chains_is_told(local, tmp_path, name, problem):
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{name}: {problem}"):
        import_chains(str(tmp_path / name), local, "mini", "elsewhere")


@pytest.mark.parametrize("bad", ["mini/../../../evil.png", "/evil.png", "mini/..\\evil.png"])
def test_an_export_writes_nothing_outside_of_its_folder(local, tmp_path, bad):
    for kind in ("index", "samples"):
        for file in storage.list_files(join(dataset_location(local, "mini"), kind, "flat")):
            rows = storage.read_table(file)
            ids = [bad, *rows["id"].to_pylist()[1:]]
            storage.write_table(file, rows.set_column(rows.schema.get_field_index("id"), "id", pa.array(ids)))
    table = read_chains(local, "mini", "rules", ["flat"]).slice(0, 1)
    write_chains(local, "mini", "bad", {"flat": table.set_column(0, "id", pa.array([bad]))})
    with pytest.raises(ValueError, match=r"the sample's id .* leads out of its folder"):
        export_chains(local, "mini", "bad", str(tmp_path / "a/b/c"), "sharegpt")
    assert not list(tmp_path.rglob("evil*"))


def test_chains_of_classes_that_cannot_be_told_apart_are_not_taken(local):
    info = info_location(local, "mini")
    described = storage.read_json(info)
    storage.write_json(info, described | {"classes": [*described["classes"], LABEL.upper()]})
    with pytest.raises(ValueError, match=f"classes '{LABEL}' and '{LABEL.upper()}' .* are one .* rename one"):
        import_lines(local, line())


PATH = "photos/flat/bird/1F414.png"
ASKED = {"role": "user", "content": "<image>What is it?"}
ANSWERED = {"role": "assistant", "content": chain()}
IN_PARTS = [{"type": "image_url", "image_url": {"url": PATH}}, {"type": "text", "text": "What is it?"}]
ROWS = {
    "LLaVA": {
        "id": "000000033471",
        "image": PATH,
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": chain()},
        ],
    },
    "InternVL": {
        "image": [PATH],
        "width": 96,
        "height": 96,
        **{k: v for k, v in line().items() if k != "images"},
    },
    "an integer id": line(id=7),
    "a path of Windows": line(image=r"C:\data\flat\bird\1F414.png"),
    "OpenAI's parts": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": IN_PARTS},
            {"role": "assistant", "content": [{"type": "text", "text": chain()}]},
        ]
    },
    "TRL's turns": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        "completion": [ANSWERED],
        "images": [{"path": PATH, "bytes": None}],
    },
    "TRL's texts": {"prompt": "What is it?", "completion": chain(), "image": PATH},
    "Alpaca": {"instruction": "<image>What?", "input": "", "output": chain(), "images": [PATH]},
    "ms-swift": {"query": "<image>What?", "response": chain(), "images": [PATH]},
    "an id and no path": {"messages": [ASKED, ANSWERED], "id": ID},
}


@pytest.mark.parametrize("form", ROWS)
def test_rows_are_read_in_the_forms_of_other_tools(local, form):
    assert import_lines(local, ROWS[form]) == {"accepted": 1}
    [row] = chains_of(local, "elsewhere").to_pylist()
    assert (row["id"], row["text"]) == (ID, chain())


@pytest.mark.parametrize("form", ["LLaVA", "TRL's turns", "OpenAI's parts"])
def test_conversations_are_read_from_parquet_too(local, tmp_path, form):
    storage.write_table(str(tmp_path / "made.parquet"), pa.Table.from_pylist([ROWS[form]]))
    assert import_chains(str(tmp_path / "made.parquet"), local, "mini", "elsewhere") == {"accepted": 1}


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_beside_its_description(local, tmp_path, indent):
    (tmp_path / "made").mkdir()
    text = json.dumps([line(), line(chain("vehicle"))], indent=indent)
    (tmp_path / "made/data.json").write_text(text)
    (tmp_path / "made/dataset_info.json").write_text("{}")
    counts = import_chains(str(tmp_path / "made"), local, "mini", "elsewhere")
    assert counts == {"accepted": 1, "wrong_class": 1}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{}", "not a list of rows but an object"),
        (b"null", "not a list of rows but a null"),
        (b'[{"messages": ', "not JSON .*write a list of rows"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "row 1: not an object but an int"),
        (b'["x", {}]', "row 1: not an object but a text"),
    ],
)
def test_what_is_no_array_of_rows_is_told(local, tmp_path, content, problem):
    (tmp_path / "made.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"made\.json.*{problem}|made\.json: not imported:\n.*{problem}"):
        import_chains(str(tmp_path / "made.json"), local, "mini", "elsewhere")


@pytest.mark.parametrize(
    "mark", ["<image>", "<video>", "<IMG_CONTEXT>", "<|im_end|>", "<|image_pad|>", "<|eot_id|>", "</s>"]
)
def test_a_models_own_mark_in_a_chain_is_told(local, mark):
    with pytest.raises(ValueError, match=r"line 2: the chain holds .*, which a model does not read as text"):
        import_lines(local, line(), line(chain().replace("Words.", f"The {mark} shows it.", 1)))


def test_a_sign_that_is_no_mark_stays(local):
    text = chain().replace("Words.", "1 < 2 > 0, a <b>bold</b> |image| of <it>.", 1)
    assert import_lines(local, line(text)) == {"accepted": 1}


@pytest.mark.parametrize("replace", [False, True])
def test_answers_that_are_not_gathered_yet_are_not_imported_over(local, replace):
    entry = join(dataset_location(local, "mini"), "chains/elsewhere/_journal/a.json")
    storage.write_json(entry, {"domain": "flat", "row": {}})
    with pytest.raises(
        ValueError, match=r"chains/elsewhere: holds answers of a teacher .* or choose another"
    ):
        import_lines(local, line(), replace=replace)
    assert storage.read_json(entry)


def test_chains_that_a_training_may_not_take_are_counted(local, caplog):
    text = chain().replace("Words.", "Words and words. " * 2000, 1)
    import_lines(local, line(text), line(chain(), image=OTHER_ID))
    assert "1 accepted chains have more than 16384 characters, such as that of " + ID in caplog.text


def test_classes_that_lose_more_are_counted(local, caplog):
    rows = read_chains(local, "mini", "rules", mini.DOMAINS).to_pylist()
    lines = [
        {"id": row["id"], **line("x" if "/bird/" in row["id"] else row["text"], accepted=None)}
        for row in rows
    ]
    for given in lines:
        given["accepted"] = False if "/bird/" in given["id"] else None
    import_lines(local, *lines)
    assert "without an accepted chain are 30 of 30 of 'bird', and 0 of 60 of the other classes" in caplog.text


def test_chains_of_other_domains_are_not_opened(local):
    before = read_chains(local, "mini", "rules", ["flat", "sketch"])
    for file in storage.list_files(join(dataset_location(local, "mini"), "chains/rules/paint")):
        storage.write_bytes(file, b"opening this would fail")
    assert read_chains(local, "mini", "rules", ["flat", "sketch"]).equals(before)
    with pytest.raises(StorageError):
        read_chains(local, "mini", "rules", ["paint"])


@FORMS
def test_chains_about_questions_come_back_equal_and_have_their_questions_with_them(tmp_path, form):
    root, place = str(tmp_path), tmp_path / "exported"
    write_iconbed_vqa(root)
    index = sample_index(root, iconbed_vqa_info(), ["flat"])
    asked = {row["id"]: row for row in index.to_pylist()}
    theirs = read_chains(root, VQA, "rules", ["flat"])
    write_chains(root, VQA, "gpt", {"flat": theirs})
    assert export_chains(root, VQA, "gpt", str(place), form) == len(asked)
    assert import_chains(str(place), root, VQA, "back") == {"accepted": len(asked)}
    back = read_chains(root, VQA, "back", ["flat"])
    assert as_imported(back, {row["id"]: row["sha256"] for row in asked.values()}) == theirs.to_pylist()
    if form == "sharegpt":
        for line in map(json.loads, (place / "chains.jsonl").read_text().splitlines()):
            row = asked[line["id"]]
            prompt = reasoning_prompt(row["options"], row["question"])
            assert line["messages"][0]["content"] == f"<image>{prompt}"
    else:
        import datasets

        [part] = (place / "data").iterdir()
        note = json.loads(pq.read_schema(part).metadata[b"huggingface"])["info"]["features"]
        told = [
            feature for value in note.values() for feature in (value if isinstance(value, list) else [value])
        ]
        assert {feature["_type"] for feature in told} == {"Image", "Value"}, "what releases before 4.0 know"
        rows = datasets.load_dataset(str(place), cache_dir=str(tmp_path / "cache"))["train"]
        assert rows.features["options"] == datasets.List(datasets.Value("string"))
        for row in rows.select_columns(["id", "question", "options"]):
            assert (row["question"], row["options"]) == tuple(
                asked[row["id"]][n] for n in ("question", "options")
            )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json", "a.Json"])
def test_lines_are_read_in_the_encodings_of_json(local, tmp_path, encoding, name):
    rows = [line(id=sample_id) for sample_id in (ID, OTHER_ID)]
    (tmp_path / name).write_bytes("\r\n".join(map(json.dumps, rows)).encode(encoding))
    assert import_chains(str(tmp_path / name), local, "mini", "theirs") == {"accepted": 2}


def test_what_is_in_no_encoding_is_named(local, tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"id": "x"}\n'.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"a\.jsonl: is neither in UTF-8 nor in utf-16 .*; save it in UTF-8"):
        import_chains(str(tmp_path / "a.jsonl"), local, "mini", "theirs")
