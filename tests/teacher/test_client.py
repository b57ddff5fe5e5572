"""What servers answer, read without one."""

import json

import pytest

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.teacher.client import Answer, Endpoint, SampleError, Teacher, TeacherError, unwrap

CHAIN = render_chain(dict.fromkeys(SECTIONS, "words"))
ESTIMATE = 321


def teacher(key="sk-of-a-test", url="http://127.0.0.1:9/v1"):
    return Teacher(Endpoint("asked-for", url, key), max_tokens=10, temperature=None, prompt_tokens=ESTIMATE)


def body(message=None, finish="stop", **fields):
    choice = {"index": 0, "finish_reason": finish, "message": message}
    usage = {"prompt_tokens": 100, "completion_tokens": 50}
    return json.dumps({"model": "m", "choices": [choice], "usage": usage, **fields}).encode()


def says(content, **fields):
    return body({"role": "assistant", "content": content, **fields})


def read(data):
    return teacher()._answer(data)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (CHAIN, CHAIN),
        ([{"type": "text", "text": CHAIN}], CHAIN),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        (
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "b"},
            ],
            "b",
        ),
        (["a", "b", 5, None], "ab"),
        ("grüße 好 👋", "grüße 好 👋"),
    ],
)
def test_text_is_read_from_text_and_from_parts(content, text):
    assert read(says(content)) == Answer(text, None, 100, 50, "m")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (says(None), "empty"),
        (says(" \n"), "empty"),
        (says([]), "empty"),
        (body(None), "empty"),
        (body("no object"), "empty"),
        (body([1, 2]), "empty"),
        (body(choices=[]), "empty"),
        (says(5), "no_text"),
        (says(True), "no_text"),
        (says({"a": 1}), "no_text"),
        (says(0.5), "no_text"),
        (says(CHAIN.replace("words", "a\ud800b", 1)), "broken_text"),
        (says("\udfff"), "broken_text"),
        (says("a\0b"), "broken_text"),
        (says("\x1b[31mred"), "broken_text"),
        (says("words").replace(b"words", b"w\xff\xfe"), "broken_text"),
        (says(None, refusal="no"), "refusal"),
        (says(CHAIN, refusal={"a": 1}), "refusal"),
        (says(None, refusal=["no", 5]), "refusal"),
        (says(None, refusal=7), "refusal"),
        (says(CHAIN, refusal=""), None),
        (body({"content": ""}, finish="content_filter"), "content_filter"),
        (body({"content": CHAIN}, finish="length"), "unfinished"),
        (body({"content": CHAIN}, finish={"odd": 1}), None),
        (body({"content": CHAIN}, finish=None), None),
        (says(None, reasoning_content=CHAIN), "only_reasoning"),
        (says("", reasoning=CHAIN), "only_reasoning"),
        (says(None, reasoning={"odd": 1}), "empty"),
        (says(CHAIN, reasoning_content="hm"), None),
    ],
)
def test_what_is_no_chain_has_its_reason_and_can_be_stored(data, reason):
    answer = read(data)
    assert answer.reason == reason
    answer.text.encode()
    assert (answer.prompt_tokens, answer.answer_tokens, answer.model) == (100, 50, "m")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"choices": [',
        b'{"choices":"\xff\xfe"}',
        b"\xff\xfe\x00",
        b"<html>login</html>",
        b"hello",
        b"null",
        b"5",
        b'"abc"',
        b"[1, 2]",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        body(choices=None),
        body(choices={"a": 1}),
        body(choices="abc"),
        body(choices=7),
        body(choices=[5]),
        body(choices=[None]),
        body(choices=[["x"]]),
    ],
)
def test_what_is_no_completion_is_a_failed_request(data):
    with pytest.raises(SampleError, match=r"answered with no completion.*; check the base URL"):
        read(data)


def test_an_error_under_the_status_of_success_is_shown_without_the_key():
    with pytest.raises(SampleError, match=r"no completion \(overloaded, \*\*\*\); check"):
        read(json.dumps({"error": {"message": "overloaded, sk-of-a-test"}}).encode())


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 0}, (7, 0)),
        ({"prompt_tokens": "70", "completion_tokens": "8"}, (70, 8)),
        ({"prompt_tokens": 10.5, "completion_tokens": 5.0}, (11, 5)),
        *(
            (usage, (ESTIMATE, 1))
            for usage in (
                None,
                {},
                [],
                "many",
                5,
                {"prompt_tokens": None, "completion_tokens": None},
                {"prompt_tokens": 10**12, "completion_tokens": 10**12},
                {"prompt_tokens": 10**400, "completion_tokens": 10**400},
                {"prompt_tokens": -(10**9), "completion_tokens": -1},
                {"prompt_tokens": "many", "completion_tokens": ""},
                {"prompt_tokens": {"a": 1}, "completion_tokens": [1]},
                {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
            )
        ),
    ],
)
def test_tokens_are_the_servers_count_or_an_estimate(usage, tokens):
    answer = read(body({"content": "text"}, usage=usage))
    assert (answer.prompt_tokens, answer.answer_tokens) == tokens


@pytest.mark.parametrize("model", [None, 5, "", {"a": 1}, ["m"], True])
def test_a_model_without_a_name_is_the_one_that_was_asked(model):
    assert read(body({"content": "x"}, model=model)).model == "asked-for"


@pytest.mark.parametrize(
    "text",
    [
        CHAIN,
        f"<think>The CAPTION first.</think>\n{CHAIN}",
        f"<think>A draft: {CHAIN}</think>{CHAIN}",
        f"thought without a start</think>\n\n{CHAIN}\n",
        f"```\n{CHAIN}\n```",
        f"```xml\n{CHAIN}\n```\n",
        f"Sure! Here it is:\n\n{CHAIN}\n\nI hope that this helps.",
        f"<think></think>Well:\n~~~~html\n{CHAIN}\n~~~~",
        f"<answer>{CHAIN}</answer>",
    ],
)
def test_what_teachers_wrap_a_chain_in_is_taken_off(text):
    assert unwrap(text) == CHAIN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "<think>It never ends",
        CHAIN.removeprefix("<SUMMARY>"),
        CHAIN.removesuffix("</CONCLUSION>"),
        f"<think>{CHAIN}</think>",
        "</CONCLUSION><SUMMARY>",
    ],
)
def test_what_is_no_chain_stays_as_it_is(text):
    assert unwrap(text) == text


def test_what_stands_between_sections_stays():
    text = CHAIN.replace("<CAPTION>", "Next: <CAPTION>")
    assert unwrap(f"Sure! {text}") == text


@pytest.mark.parametrize("key", ["sk-1\n", " sk-1 ", "\tsk-1\r\n"])
def test_white_space_around_a_key_is_no_part_of_it(key):
    assert teacher(key)._secret == "sk-1"


@pytest.mark.parametrize("key", ["sk-é", "sk-1\nsk-2", "sk\0", "“sk-1”", "sk-1\x7f"])
def test_a_key_that_no_server_takes_is_refused_and_not_shown(key):
    with pytest.raises(TeacherError, match="the API key holds a character that no key holds") as caught:
        teacher(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_an_empty_key_is_none(key, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(TeacherError, match="no API key: set OPENAI_API_KEY"):
        teacher(key)


URLS = [
    "notaurl",
    "localhost:8000/v1",
    "ftp://host/v1",
    "http://",
    "http://host:port/v1",
    "http://a b/v1",
    "//h",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("from_environment", [False, True])
def test_a_url_that_cannot_be_one_is_refused_at_once(url, from_environment, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url if from_environment else "http://127.0.0.1:9/v1")
    with pytest.raises(TeacherError, match=r"is no URL of an API; give one such as https://host/v1"):
        teacher(url=None if from_environment else url)


def test_a_password_in_a_url_is_not_shown():
    with pytest.raises(TeacherError) as caught:
        teacher(url="http://someone:secret@host:port/v1")
    assert "secret" not in str(caught.value)
