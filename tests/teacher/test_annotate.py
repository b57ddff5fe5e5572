"""A teacher's annotation against an endpoint of our own that answers well, badly and not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow as pa
import pytest

from rdmldg_ray import api, storage
from rdmldg_ray.chains.attach import attach_chains
from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.chains.prompts import TEACHER_PROMPT_VERSION, teacher_prompt
from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.datasets.builtin.questions import NAME as VQA
from rdmldg_ray.datasets.builtin.questions import write_iconbed_vqa
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import chains_location, read_dataset_info, samples_location
from rdmldg_ray.teacher import client as teacher
from rdmldg_ray.teacher.annotate import Annotation, AnnotationRequest
from rdmldg_ray.teacher.client import TeacherError
from rdmldg_ray.teacher.pricing import known_price
from tests.helpers.openai_endpoint import MODEL, Endpoint, Reply, completion, completion_of, refused, serving
from tools import mini

KEY = "sk-of-a-test-0123456789"
PRICE = known_price("gpt-4o")
ANSWER_COST = PRICE.of(400, 100)


def chain(conclusion):
    return render_chain(dict.fromkeys(SECTIONS, "words") | {"CONCLUSION": conclusion})


def good(sample, before):
    return completion(chain(sample["label"]))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("mini"))
    mini.write_mini(root)
    return root


@pytest.fixture(scope="module")
def samples(written):
    return [
        row
        for domain in mini.DOMAINS
        for row in storage.read_table(samples_location(written, mini.NAME, domain)).to_pylist()
    ]


@pytest.fixture
def mini_root(tmp_path, written):
    """The data set of its own for a test, without chains."""
    for file in storage.list_files(written):
        if "/chains/" not in file:
            storage.write_bytes(str(tmp_path / file.removeprefix(f"{written}/")), storage.read_bytes(file))
    return str(tmp_path)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    # Back-off as it is, only faster.
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.05)


def request(**changes):
    settings = {
        "model": "gpt-4o",
        "teacher": "gpt-4o",
        "candidates": 3,
        "max_tokens": 1024,
        "temperature": None,
        "concurrency": 8,
        "price": PRICE,
        "max_cost": None,
        "max_samples": None,
    }
    return AnnotationRequest(**settings | changes)


def annotate(root, samples, reply, seen=None, **changes):
    """Annotate against an endpoint that answers with ``reply``; returns it and the outcome."""
    annotation = Annotation(root, read_dataset_info(root, mini.NAME), request(**changes))
    shown = [] if seen is None else seen
    with serving(Endpoint(samples, reply)) as endpoint:
        outcome = annotation.run(
            teacher.Endpoint(annotation.request.model, endpoint.url), lambda *state: shown.append(state)
        )
    return endpoint, outcome


def rows_of(root, source="gpt-4o"):
    return read_chains(root, mini.NAME, source, mini.DOMAINS).to_pylist()


def test_every_sample_gets_a_chain_that_training_finds(mini_root, samples):
    seen = []
    endpoint, outcome = annotate(mini_root, samples, good, seen)
    assert (outcome.accepted, outcome.rejected, outcome.failed, outcome.stopped) == (90, {}, {}, None)
    assert set(endpoint.asked.values()) == {1}
    rows = rows_of(mini_root)
    assert {row["id"] for row in rows} == {row["id"] for row in samples}
    labels = {row["id"]: row["label"] for row in samples}
    for row in rows:
        assert row["accepted"] and row["reason"] is None and row["candidate"] == 0
        assert row["conclusion"] == labels[row["id"]] and row["text"] == chain(labels[row["id"]])
        assert (row["prompt_version"], row["model"]) == (TEACHER_PROMPT_VERSION, MODEL)
        assert (row["prompt_tokens"], row["answer_tokens"]) == (400, 100)
        assert row["cost"] == pytest.approx(ANSWER_COST)
    # Nothing but parts and their description stays, and progress told tokens and cost.
    there = storage.list_files(chains_location(mini_root, mini.NAME, "gpt-4o"))
    assert all(file.endswith((".parquet", "/annotation.json")) for file in there)
    assert seen[-1] == (90, 90, f"{90 * 500} tokens, ${90 * ANSWER_COST:.4f}")
    info = read_dataset_info(mini_root, mini.NAME)
    table = read_chains(mini_root, mini.NAME, "gpt-4o", ["flat", "paint"])
    assert len(attach_chains(sample_index(mini_root, info, ["flat", "paint"]), table, "here")) == 60


def test_the_teacher_sees_image_and_options_and_not_the_label(mini_root, samples):
    endpoint, _ = annotate(mini_root, samples, good)
    prompt = teacher_prompt(mini.CLASSES)
    assert all(f"<{stage}>" in prompt and f"</{stage}>" in prompt for stage in SECTIONS)
    assert all(name in prompt for name in mini.CLASSES)
    for asked in endpoint.requests:
        [turn] = asked["messages"]
        image, text = turn["content"]
        assert text == {"type": "text", "text": prompt}
        assert set(image["image_url"]) == {"url", "detail"}
        assert set(asked) == {"messages", "model", "max_completion_tokens"}
    assert endpoint.keys == {f"Bearer {KEY}"}
    # All of a request, but for the image, is the same for every sample.
    for asked in endpoint.requests:
        asked["messages"][0]["content"][0]["image_url"]["url"] = ""
    assert len({json.dumps(asked) for asked in endpoint.requests}) == 1


MALFORMED = {
    "refusal": completion(None, refusal="I cannot help with that."),
    "content_filter": completion("", finish="content_filter"),
    "unfinished": completion("<SUMMARY>and so on", finish="length"),
    "empty": completion("  \n"),
    "no choice": completion_of([]),
    "missing_section": completion("It is a bird."),
    "wrong_order": completion(chain("bird") + chain("bird")),
    "text_outside": completion(chain("bird").replace("<CAPTION>", "Next: <CAPTION>")),
    "empty_section": completion(chain("")),
    "not_a_class": completion(chain("spoon")),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_chain_is_drawn_again_and_kept_with_its_reason(mini_root, samples, kind):
    def reply(sample, before):
        return MALFORMED[kind] if before == 0 else good(sample, before)

    _, outcome = annotate(mini_root, samples, reply, max_samples=5)
    reason = "empty" if kind == "no choice" else kind
    assert (outcome.accepted, outcome.rejected) == (5, {reason: 5})
    rows = rows_of(mini_root)
    assert Counter((row["candidate"], row["accepted"], row["reason"]) for row in rows) == {
        (0, False, reason): 5,
        (1, True, None): 5,
    }


def test_a_wrong_conclusion_is_rejected_and_candidates_end(mini_root, samples):
    def wrong(sample, before):
        return completion(chain(next(name for name in mini.CLASSES if name != sample["label"])))

    endpoint, outcome = annotate(mini_root, samples, wrong, candidates=2, max_samples=4)
    assert (outcome.accepted, outcome.rejected) == (0, {"wrong_class": 8})
    assert set(endpoint.asked.values()) == {2}
    # They are done with; with more candidates they are open again, and the others are not asked about.
    endpoint, outcome = annotate(mini_root, samples, good, candidates=2, max_samples=4)
    assert not endpoint.requests
    endpoint, outcome = annotate(mini_root, samples, good, candidates=3, max_samples=4)
    assert (len(endpoint.requests), outcome.accepted) == (4, 4)
    assert {row["candidate"] for row in rows_of(mini_root) if row["accepted"]} == {2}


FAULTS = {
    "429": lambda: refused(429, {"retry-after-ms": "50"}, "rate_limit_exceeded"),
    "429 that says nothing": lambda: refused(429),
    "500": lambda: refused(500),
    "503": lambda: Reply(b"<html>down for a moment</html>", 503, {"Content-Type": "text/html"}),
    "cut stream": lambda: Reply(completion("x" * 4000).body, cut=True),
    "time-out": lambda: Reply(b"{}", wait_s=1.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_are_waited_out(mini_root, samples, fault, monkeypatch):
    if fault == "time-out":
        monkeypatch.setattr(teacher, "_TIMEOUT_S", 0.5)

    def reply(sample, before):
        return FAULTS[fault]() if before < 2 else good(sample, before)

    endpoint, outcome = annotate(mini_root, samples, reply, max_samples=4)
    assert (outcome.accepted, outcome.rejected, outcome.failed) == (4, {}, {})
    assert set(endpoint.asked.values()) == {3}


def test_requests_follow_the_servers_allowance(mini_root, samples):
    """One request is left, and they come back at 20 a second."""
    allowance = {
        "x-ratelimit-limit-requests": "21",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1050ms",
    }

    def reply(sample, before):
        answer = good(sample, before)
        return Reply(answer.body, headers=allowance)

    endpoint, outcome = annotate(mini_root, samples, reply, max_samples=21, concurrency=1)
    assert outcome.accepted == 21
    gaps = [after - before for before, after in zip(endpoint.times, endpoint.times[1:], strict=False)]
    # Never sooner than allowed; how much later depends on the machine.
    assert min(gaps) > 0.045


def test_no_more_requests_are_under_way_than_asked_for(mini_root, samples):
    def slowly(sample, before):
        answer = good(sample, before)
        answer.wait_s = 0.02
        return answer

    endpoint, _ = annotate(mini_root, samples, slowly, concurrency=3)
    assert endpoint.most_at_once <= 3


def test_a_sample_without_an_answer_is_told_and_asked_about_again(mini_root, samples, monkeypatch):
    monkeypatch.setattr(teacher, "_RETRIES", 1)
    bad = sorted(row["id"] for row in samples)[7]

    def reply(sample, before):
        return refused(500, words="broken") if sample["id"] == bad else good(sample, before)

    _, outcome = annotate(mini_root, samples, reply)
    assert (outcome.accepted, outcome.stopped) == (89, None)
    [(message, count)] = outcome.failed.items()
    assert (count, "answered 500: " in message) == (1, True)
    endpoint, outcome = annotate(mini_root, samples, good)
    assert (dict(endpoint.asked), outcome.accepted) == ({bad: 1}, 1)


STOPS = {
    "wrong key": (
        refused(401, words=f"Incorrect API key provided: {KEY}"),
        "refused access (401); check OPENAI",
    ),
    "no access": (refused(403, words=KEY), "refused access (403); check OPENAI_API_KEY, and that it may use"),
    "no model": (refused(404), "does not know the model 'gpt-4o'"),
    "no credit": (refused(429, code="insufficient_quota"), "the account has no credit left"),
    "come back tomorrow": (
        refused(429, {"retry-after": "86400"}, "rate_limit_exceeded"),
        "run the same command",
    ),
    "bad request": (refused(400, words=f"no images, {KEY}"), "answered 400: "),
    "no JSON": (Reply(b"<html>welcome</html>", headers={"Content-Type": "text/html"}), "check the base URL"),
}


@pytest.mark.parametrize("kind", STOPS)
def test_what_no_sample_can_mend_stops_at_once_and_says_why(mini_root, samples, kind, monkeypatch, capfd):
    monkeypatch.setattr(teacher, "_RETRIES", 1)
    answer, words = STOPS[kind]

    def reply(sample, before):
        return answer if len(endpoint_requests) >= 10 else endpoint_requests.append(1) or good(sample, before)

    endpoint_requests = []
    with pytest.raises(TeacherError) as caught:
        annotate(mini_root, samples, reply, concurrency=2)
    assert words in str(caught.value)
    printed = "".join(capfd.readouterr())
    assert KEY not in str(caught.value) + printed
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert len(rows_of(mini_root)) == 10  # what was answered is kept
    there = storage.list_files(chains_location(mini_root, mini.NAME, "gpt-4o"))
    assert not any(KEY.encode() in storage.read_bytes(file) for file in there)


def test_a_server_that_is_not_there_is_named_without_its_password(mini_root, monkeypatch):
    monkeypatch.setattr(teacher, "_RETRIES", 0)
    annotation = Annotation(mini_root, read_dataset_info(mini_root, mini.NAME), request())
    with pytest.raises(TeacherError, match=r"no answer from http://127.0.0.1:9/v1, or a cut one") as caught:
        annotation.run(
            teacher.Endpoint("gpt-4o", "http://someone:secret@127.0.0.1:9/v1"), lambda *state: None
        )
    assert "secret" not in str(caught.value)


def test_without_a_key_nothing_is_asked(mini_root, samples, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TeacherError, match="no API key: set OPENAI_API_KEY"):
        annotate(mini_root, samples, good)


def test_the_budget_stops_before_it_is_passed_and_holds_over_calls(mini_root, samples):
    most_each = PRICE.of(0, 1024)  # what an answer may cost is set aside before it is asked for
    limit = 10 * ANSWER_COST + 2 * most_each
    endpoint, outcome = annotate(mini_root, samples, good, max_cost=limit)
    spent = len(endpoint.requests) * ANSWER_COST
    assert limit - 2 * most_each < spent <= limit
    assert "of --max-cost" in outcome.stopped
    assert outcome.accepted == len(endpoint.requests) == len(rows_of(mini_root))
    endpoint, outcome = annotate(mini_root, samples, good, max_cost=limit)
    assert not endpoint.requests and outcome.stopped
    endpoint, outcome = annotate(mini_root, samples, good)
    assert outcome.accepted + spent / ANSWER_COST == pytest.approx(90)


def test_a_limit_in_dollars_needs_a_price(mini_root):
    info = read_dataset_info(mini_root, mini.NAME)
    with pytest.raises(ValueError, match=r"the price of 'llama' is not known.*--prices"):
        Annotation(mini_root, info, request(model="llama", price=None, max_cost=1.0))


def test_an_unknown_price_is_no_price(mini_root, samples):
    seen = []
    annotate(mini_root, samples, good, seen, price=None, max_samples=2)
    assert {row["cost"] for row in rows_of(mini_root)} == {None}
    assert seen[-1] == (2, 2, "1000 tokens")


def test_few_samples_are_of_all_domains_and_classes(mini_root):
    info = read_dataset_info(mini_root, mini.NAME)
    pending = Annotation(mini_root, info, request(max_samples=30)).pending
    assert len(pending) == 30
    assert {(row["domain"], row["label"]) for row in pending} == {
        (domain, label) for domain in mini.DOMAINS for label in mini.CLASSES
    }


def test_the_estimate_learns_how_long_answers_are(mini_root, samples):
    info = read_dataset_info(mini_root, mini.NAME)
    before = Annotation(mini_root, info, request()).estimate()
    assert (before.samples, before.answer_tokens) == (90, 90 * 350)
    annotate(mini_root, samples, good, max_samples=30)
    after = Annotation(mini_root, info, request()).estimate()
    assert (after.samples, after.answer_tokens) == (60, 60 * 100)


def test_answers_of_another_teacher_or_prompt_are_not_mixed_in(mini_root, samples, monkeypatch):
    info = read_dataset_info(mini_root, mini.NAME)
    annotate(mini_root, samples, good, max_samples=1)
    with pytest.raises(ValueError, match=r"annotation.json: .*model was 'gpt-4o'; .*\(--name\)"):
        Annotation(mini_root, info, request(model="gpt-4.1"))
    monkeypatch.setattr("rdmldg_ray.teacher.annotate.TEACHER_PROMPT_VERSION", "teacher-2")
    with pytest.raises(ValueError, match="prompt_version was 'teacher-1'"):
        Annotation(mini_root, info, request())


def test_chains_that_came_otherwise_are_not_mixed_with(written):
    with pytest.raises(ValueError, match=r"rules: holds chains that no teacher was asked for here.*--name"):
        Annotation(written, read_dataset_info(written, mini.NAME), request(teacher="rules"))


def test_killed_at_any_time_no_answer_is_paid_twice(mini_root, samples):
    """Killed three times while requests wait for their answers."""
    endpoint = Endpoint(samples, good)
    answering = _Answering(endpoint)
    endpoint.reply = answering.reply
    with serving(endpoint):
        for allowed in (7, 40, 75):
            answering.allowed = allowed
            process = _start(mini_root, endpoint.url)
            deadline = time.monotonic() + 180
            while _answers_on_storage(mini_root) < allowed:
                assert process.poll() is None, "it ended by itself"
                assert time.monotonic() < deadline, "the answers never came"
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
        answering.allowed = 1000
        assert _start(mini_root, endpoint.url).wait(timeout=180) == 0
    assert len(endpoint.answered) == 90
    assert set(endpoint.answered.values()) == {1}
    assert Counter(row["id"] for row in rows_of(mini_root)) == Counter(row["id"] for row in samples)


class _Answering:
    """Lets so many answers go out in all, and holds the others back until their client is gone."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.allowed = 0
        self.given = 0

    def reply(self, sample, before):
        with self.endpoint.lock:
            if self.given < self.allowed:
                self.given += 1
                return good(sample, before)
        return Reply(b"", 500, wait_s=5)


def _answers_on_storage(root):
    location = chains_location(root, mini.NAME, "gpt-4o")
    parts = storage.list_files(location, ".parquet")
    journal = storage.list_files(storage.join(location, "_journal"), ".json")
    return sum(len(storage.read_table(file, ["id"])) for file in parts) + len(journal)


def _start(root, url):
    command = [
        sys.executable,
        "-m",
        "rdmldg_ray",
        "annotate",
        mini.NAME,
        "--storage",
        root,
        "--base-url",
        url,
    ]
    return subprocess.Popen([*command, "--concurrency", "4"], env=os.environ)


def test_a_sample_with_a_question_of_its_own_is_asked_it_and_judged_by_its_options(tmp_path):
    root = str(tmp_path)
    write_iconbed_vqa(root)
    info = read_dataset_info(root, VQA)
    annotation = Annotation(root, info, request(max_samples=4, candidates=1))
    asked = {row["id"]: row for row in annotation.pending}
    assert len({row["question"] for row in asked.values()}) > 1
    images = storage.read_images(pa.Table.from_pylist(annotation.pending))
    served = [row | {"image": image} for row, image in zip(annotation.pending, images, strict=True)]
    first = annotation.pending[0]["id"]

    def reply(sample, before):
        return completion(chain("dog" if sample["id"] == first else sample["label"]))

    with serving(Endpoint(served, reply)) as endpoint:
        annotation.run(teacher.Endpoint("gpt-4o", endpoint.url), lambda *state: None)
    texts = sorted(turn["messages"][0]["content"][1]["text"] for turn in endpoint.requests)
    assert texts == sorted(teacher_prompt(row["options"], row["question"]) for row in asked.values())
    chains = read_chains(root, VQA, "gpt-4o", info.environments).to_pylist()
    assert {row["id"]: row["reason"] for row in chains} == dict.fromkeys(asked) | {first: "not_a_class"}


def told(**fields):
    """A completion with other fields than a model's."""
    return Reply(json.dumps({**json.loads(completion(chain("bird")).body), **fields}).encode())


ODD = {
    "cut JSON": Reply(b'{"choices": ['),
    "bytes that are no text": Reply(b'{"choices":"\xff\xfe"}'),
    "choices that are none": told(choices={"a": 1}),
    "a choice that is none": told(choices=[5]),
    "nothing": Reply(b""),
    "a web page": Reply(b"<html>", headers={"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_answer_that_is_none_is_counted_and_the_others_are_kept(mini_root, samples, kind):
    odd = sorted(row["id"] for row in samples)[::30]

    def reply(sample, before):
        return ODD[kind] if sample["id"] in odd else good(sample, before)

    _, outcome = annotate(mini_root, samples, reply, max_samples=90)
    assert (outcome.accepted, outcome.failed.total(), len(rows_of(mini_root))) == (87, 3, 87)
    endpoint, outcome = annotate(mini_root, samples, good)
    assert (set(endpoint.asked), outcome.accepted) == (set(odd), 3)


def test_odd_fields_of_an_answer_do_not_spoil_the_name(mini_root, samples):
    fields = [
        {"usage": {"prompt_tokens": 10**12, "completion_tokens": -5}},
        {"usage": {}},
        {"usage": {"prompt_tokens": None, "completion_tokens": "7"}},
        {"model": 5},
        {"model": "a \ud800 b"},
        {"choices": [{"message": {"content": f"\ud800{chain('bird')}"}}]},
        {"choices": [{"message": {"content": None, "refusal": {"a": 1}}}]},
        {"choices": [{"message": {"content": {"a": 1}}, "finish_reason": 5}]},
    ]
    first = [
        row["id"] for row in Annotation(mini_root, read_dataset_info(mini_root, mini.NAME), request()).pending
    ]

    def reply(sample, before):
        place = first.index(sample["id"])
        return told(**fields[place]) if place < len(fields) and before == 0 else good(sample, before)

    _, outcome = annotate(mini_root, samples, reply, max_samples=20)
    assert outcome.failed == {}
    rows = rows_of(mini_root)
    assert len({row["id"] for row in rows if row["accepted"]}) == 20
    assert {"refusal": 1, "no_text": 1, "broken_text": 1}.items() <= outcome.rejected.items()
    # No count that cannot be is paid for.
    assert max(row["prompt_tokens"] for row in rows) < 2000
    endpoint, _ = annotate(mini_root, samples, good, max_samples=20)
    assert not endpoint.requests


FILTERED = {
    "Azure": refused(400, code="content_filter", words="The response was filtered"),
    "OpenAI": refused(400, code="content_policy_violation"),
    "by its words": refused(400, words="Your request was rejected by our safety system."),
    "another status": refused(403, words="requires moderation; your input was flagged for violence"),
    "inner error": Reply(
        b'{"error": {"code": "BadRequest", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}', 400
    ),
}


@pytest.mark.parametrize("kind", FILTERED)
def test_what_a_filter_refuses_is_rejected_once_and_stops_nothing(mini_root, samples, kind):
    filtered = {row["id"] for row in samples if row["label"] == "bird"}

    def reply(sample, before):
        return FILTERED[kind] if sample["id"] in filtered else good(sample, before)

    endpoint, outcome = annotate(mini_root, samples, reply, concurrency=4)
    assert (outcome.accepted, outcome.rejected, outcome.failed) == (60, {"content_filter": 30}, {})
    assert set(endpoint.asked.values()) == {1}
    rows = [row for row in rows_of(mini_root) if row["reason"] == "content_filter"]
    assert {row["id"] for row in rows} == filtered
    assert {(row["prompt_tokens"], row["answer_tokens"], row["cost"]) for row in rows} == {(0, 0, 0.0)}
    # The one class that lost its images is told, and none of them is asked about again.
    assert "are 30 of 30 of 'bird', and 0 of 60 of the other classes" in outcome.uneven
    endpoint, _ = annotate(mini_root, samples, reply, candidates=9)
    assert not endpoint.requests


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_knows_the_older_name_of_the_limit_is_asked_by_it(mini_root, samples, status):
    detail = [{"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}]

    def reply(sample, before):
        if "max_completion_tokens" in endpoint.requests[-1]:
            return Reply(json.dumps({"detail": detail}).encode(), status)
        return good(sample, before)

    endpoint = Endpoint(samples, reply)
    annotation = Annotation(
        mini_root, read_dataset_info(mini_root, mini.NAME), request(max_samples=5, concurrency=1)
    )
    with serving(endpoint):
        outcome = annotation.run(teacher.Endpoint("gpt-4o", endpoint.url), lambda *state: None)
    assert (outcome.accepted, outcome.failed) == (5, {})
    assert [asked.get("max_tokens") for asked in endpoint.requests] == [None, *[1024] * 5]


def test_what_the_server_says_is_wrong_is_shown(mini_root, samples):
    answer = Reply(json.dumps({"detail": [{"loc": ["model"], "msg": "no images here"}]}).encode(), 422)
    with pytest.raises(TeacherError, match="answered 422: no images here; so it was for 5 samples"):
        annotate(mini_root, samples, lambda sample, before: answer, concurrency=1)


def test_what_a_teacher_wraps_a_chain_in_stays_in_the_store(mini_root, samples):
    def reply(sample, before):
        text = chain(sample["label"])
        return completion(f"<think>Hm.</think>\n```xml\n{text}\n```" if sample["domain"] == "flat" else text)

    _, outcome = annotate(mini_root, samples, reply)
    assert (outcome.accepted, outcome.rejected, outcome.uneven) == (90, {}, None)
    labels = {row["id"]: row["label"] for row in samples}
    for row in rows_of(mini_root):
        text = chain(labels[row["id"]])
        assert row["text"] == text
        assert row["raw"] == (f"<think>Hm.</think>\n```xml\n{text}\n```" if "/flat/" in row["id"] else None)


@pytest.mark.parametrize(
    ("answer", "reason", "remedy"),
    [
        (completion("It is a bird."), "missing_section", "see what it writes"),
        (completion(""), "empty", "see what it writes"),
        (completion("<SUMMARY>", finish="length"), "unfinished", "raise --max-tokens"),
        (completion(None, refusal="no"), "refusal", "ask another teacher"),
    ],
)
def test_answers_that_are_all_rejected_for_one_reason_end_the_call(
    mini_root, samples, answer, reason, remedy
):
    def bad(sample, before):
        return answer

    words = (
        rf"20 answers in a row were rejected for one reason, {reason}; {remedy}.* --max-equal-rejections 0"
    )
    with pytest.raises(TeacherError, match=words):
        annotate(mini_root, samples, bad, concurrency=2)
    assert 20 <= len(rows_of(mini_root)) <= 22  # with those under way
    annotate(mini_root, samples, bad, max_samples=15, max_equal_rejections=0)
    assert len(rows_of(mini_root)) == 45


def test_rejections_that_differ_or_hard_samples_end_nothing(mini_root, samples):
    wrong = {row["id"]: next(name for name in mini.CLASSES if name != row["label"]) for row in samples}

    def differing(sample, before):
        return completion("x" if before % 2 else chain(wrong[sample["id"]]))

    _, outcome = annotate(mini_root, samples, differing, max_samples=30, max_equal_rejections=40)
    assert outcome.rejected == {"wrong_class": 60, "missing_section": 30}

    def hard(sample, before):
        return completion(chain(wrong[sample["id"]]))

    _, outcome = annotate(mini_root, samples, hard, max_samples=30, candidates=5, max_equal_rejections=10)
    assert outcome.rejected == {"wrong_class": 60}


def test_where_an_answer_cannot_be_written_the_call_ends_and_keeps_what_there_is(mini_root, samples):
    location = chains_location(mini_root, mini.NAME, "gpt-4o")
    # No folder can be made in the place of a file.
    storage.write_bytes(storage.join(location, "_journal"), b"")
    with pytest.raises(storage.StorageError, match=r"_journal/.*cannot be written"):
        annotate(mini_root, samples, good, concurrency=4)
    paid = len(rows_of(mini_root))
    assert 1 <= paid <= 4
    storage.delete_file(storage.join(location, "_journal"))
    endpoint, outcome = annotate(mini_root, samples, good)
    assert len(endpoint.requests) == outcome.accepted == 90 - paid


def test_two_calls_do_not_ask_for_the_same_at_once(mini_root, samples):
    """The second comes while the first one's requests are under way."""

    def reply(sample, before):
        with serving(Endpoint(samples, good)) as other:
            second = Annotation(mini_root, read_dataset_info(mini_root, mini.NAME), request())
            with pytest.raises(
                ValueError, match=rf"chains of 'gpt-4o' for 'mini': .*process {os.getpid()}.* since 20"
            ):
                second.run(teacher.Endpoint("gpt-4o", other.url), lambda *state: None)
            assert not other.requests
        return good(sample, before)

    _, outcome = annotate(mini_root, samples, reply, max_samples=2, concurrency=1)
    assert (outcome.accepted, len(rows_of(mini_root))) == (2, 2)
    annotate(mini_root, samples, good)
    assert len(rows_of(mini_root)) == 90


def test_what_a_killed_call_left_is_gathered_where_nothing_is_to_be_asked(mini_root, samples):
    annotate(mini_root, samples, good, max_samples=3)
    location = chains_location(mini_root, mini.NAME, "gpt-4o")
    for file in storage.list_files(location, ".parquet"):
        for number, row in enumerate(storage.read_table(file).to_pylist()):
            entry = {"domain": file.split("/")[-2], "row": row}
            name = f"{entry['domain']}{number}.json"
            storage.write_json(storage.join(location, "_journal", name), entry)
        storage.delete_file(file)
    asked = api.make_request("gpt-4o", max_samples=3)
    api.plan_annotation(mini.NAME, asked, storage=mini_root, dry_run=True)
    assert not storage.list_files(location, ".parquet")
    annotation = api.plan_annotation(mini.NAME, asked, storage=mini_root)
    assert not annotation.pending and len(rows_of(mini_root)) == 3
    assert not storage.list_files(storage.join(location, "_journal"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_cost": -1}, "--max-cost -1: give a number of 0 or more"),
        ({"max_cost": float("nan")}, "--max-cost nan"),
        ({"candidates": 0}, "--candidates 0: give a number of 1 or more"),
        ({"concurrency": -3}, "--concurrency -3"),
        ({"temperature": float("inf")}, "--temperature inf"),
        ({"max_equal_rejections": -1}, "--max-equal-rejections -1"),
        *(
            ({"teacher": name}, "is no name for chains")
            for name in ("", ".", "..", "../x", "a/b", "a\\b", ".x", "a\n")
        ),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        request(**changes)
