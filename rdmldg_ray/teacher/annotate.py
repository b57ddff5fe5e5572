"""Annotation: a teacher is asked for chains until each sample has one that can be trained on."""

import asyncio
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.chains.coverage import uneven_classes
from rdmldg_ray.chains.format import Verdict, judge_text
from rdmldg_ray.chains.prompts import TEACHER_PROMPT_VERSION, teacher_prompt
from rdmldg_ray.chains.questions import question_of
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.teacher.client import Answer, Endpoint, SampleError, Teacher, TeacherError, unwrap
from rdmldg_ray.teacher.journal import AnswerStore
from rdmldg_ray.teacher.pricing import (
    EXPECTED_ANSWER_TOKENS,
    Budget,
    CostEstimate,
    Price,
    estimate,
    image_tokens,
    text_tokens,
)
from rdmldg_ray.teacher.rate_limit import StoppedError

# So many samples in a row without an answer, and the fault is not theirs.
_FAILURES_IN_A_ROW = 5
# What helps against answers that are all rejected for one reason.
_REMEDIES = {
    "unfinished": "raise --max-tokens",
    "only_reasoning": "raise --max-tokens, or turn off the server's parser of reasoning",
    "refusal": "ask another teacher",
    "content_filter": "ask another teacher, or have the filter set lower",
    "not_a_class": "see what they conclude (rdmldg show teacher)",
    "wrong_class": "ask a better teacher",
}


@dataclass(frozen=True)
class AnnotationRequest:
    """What is asked for.

    Attributes:
        teacher: the name that the chains get, as ``data.chains`` takes it.
        candidates: at most so many answers for each sample.
        max_tokens: of an answer.
        temperature: the server's default for None.
        price: None where it is not known.
        max_cost: US dollars that the teacher's answers may cost, those of earlier calls included.
        max_samples: samples that may be asked about, those of earlier calls included.
        max_equal_rejections: so many answers in a row that are rejected for one reason end the call; 0 for
            no limit.

    Raises:
        ValueError: for a number that is none, or out of range.
    """

    model: str
    teacher: str
    candidates: int = 3
    max_tokens: int = 1024
    temperature: float | None = None
    concurrency: int = 16
    price: Price | None = None
    max_cost: float | None = None
    max_samples: int | None = None
    max_equal_rejections: int = 20

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.:@+ -]*", self.teacher):
            raise ValueError(
                f"'{self.teacher}' is no name for chains; give one of letters, digits and . _ - (--name)"
            )
        least = {
            "candidates": 1,
            "max_tokens": 1,
            "temperature": 0,
            "concurrency": 1,
            "max_cost": 0,
            "max_samples": 1,
            "max_equal_rejections": 0,
        }
        for name, at_least in least.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= at_least):
                option = name.replace("_", "-")
                raise ValueError(f"--{option} {value:g}: give a number of {at_least} or more")


class Limits(TypedDict, total=False):
    """The fields of ``AnnotationRequest`` that have a default, the price aside."""

    candidates: int
    max_tokens: int
    temperature: float | None
    concurrency: int
    max_cost: float | None
    max_samples: int | None
    max_equal_rejections: int


@dataclass
class Outcome:
    """What became of an annotation.

    Attributes:
        teacher: the name that the chains have, as ``data.chains`` takes it.
        location: where they lie.
        stopped: why not all samples were asked about, where that is so.
        failed: what was wrong with samples that got no answer, and how often.
        uneven: which classes were left without chains more often than others, where there are such.
    """

    teacher: str
    location: str
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    stopped: str | None = None
    uneven: str | None = None


class Annotation:
    """One teacher's annotation of a data set; asks about what earlier calls left open.

    Raises:
        ValueError: when a limit in dollars is set without a price, or the teacher's chains are others'.
    """

    def __init__(self, root: str, info: DatasetInfo, request: AnnotationRequest):
        if request.max_cost is not None and request.price is None:
            raise ValueError(
                f"the price of '{request.model}' is not known, so a limit in dollars cannot be kept; "
                "give it (--prices), or limit the samples (--max-samples)"
            )
        self.info = info
        self.request = request
        identity = {"model": request.model, "prompt_version": TEACHER_PROMPT_VERSION}
        self.store = AnswerStore(
            root=root,
            dataset=info.name,
            teacher=request.teacher,
            domains=info.environments,
            identity=identity,
        )
        samples = sample_index(root, info, info.environments, ["width", "height"]).to_pylist()
        # In an order of chance, so that a part of them shows all domains and classes.
        samples.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
        asked = [row for row in samples if self.store.progress(row["id"]).candidates]
        new = [row for row in samples if not self.store.progress(row["id"]).candidates]
        if request.max_samples is not None:
            new = new[: max(0, request.max_samples - len(asked))]
        self.total = len(samples)
        self.finished = sum(not self.is_open(row) for row in asked)
        self.pending = [row for row in asked if self.is_open(row)] + new
        self._labels = {row["id"]: row["label"] for row in samples}

    def estimate(self) -> CostEstimate:
        """What asking about the pending samples takes; the answers so far tell how long answers are."""
        store = self.store
        expected = store.answer_tokens / store.answers if store.answers else EXPECTED_ANSWER_TOKENS
        requests = [(self.prompt(row), (row["width"], row["height"])) for row in self.pending]
        return estimate(self.request.model, requests, self.request.candidates, expected)

    def no_outcome(self) -> Outcome:
        """The outcome before anything was asked."""
        return Outcome(self.request.teacher, self.store.location)

    def gather(self) -> None:
        """Put answers that a killed call left in its journal where training finds them.

        Raises:
            LeaseHeldError: when another process adds answers of this name.
        """
        if self.store.leftovers:
            with self.store.writing():
                pass

    def uneven(self) -> str | None:
        """Which classes have more samples without a chain than others, of those that were asked about."""
        found = [(label, self.store.progress(sample_id)) for sample_id, label in self._labels.items()]
        return uneven_classes((label, state.accepted) for label, state in found if state.candidates)

    def is_open(self, row: Mapping[str, Any]) -> bool:
        """Whether one more answer about a sample may help."""
        found = self.store.progress(row["id"])
        return not (found.accepted or found.filtered) and found.candidates < self.request.candidates

    def prompt(self, sample: Mapping[str, Any]) -> str:
        """What the teacher is asked about a sample; never the label."""
        asked = question_of(sample, self.info.classes)
        return teacher_prompt(asked.options, asked.text)

    def run(self, endpoint: Endpoint, progress: Callable[[int, int, str], None]) -> Outcome:
        """Ask about the pending samples.

        Args:
            progress: called with samples done, all that this call is about, and a word on tokens and cost.

        Raises:
            TeacherError: when the endpoint gives no answers, or none that can be used. What was answered
                until then is kept.
            LeaseHeldError: when another process adds answers of this name.
        """
        with self.store.writing():
            outcome = asyncio.run(_Run(self, progress).all(endpoint))
        outcome.uneven = self.uneven()
        return outcome


class _Run:
    """One call's workers and what they share."""

    def __init__(self, annotation: Annotation, progress: Callable[[int, int, str], None]):
        self.annotation = annotation
        self.request = annotation.request
        self.store = annotation.store
        self.price = self.request.price or Price(0, 0)
        self.progress = progress
        self.budget = Budget(self.request.max_cost, self.store.cost)
        self.outcome = annotation.no_outcome()
        self.error: Exception | None = None
        self.done = 0
        self.failures_in_a_row = 0
        self.rejections_in_a_row = Counter[str]()
        self.writing = asyncio.Lock()
        self.settled = asyncio.Condition()

    async def all(self, endpoint: Endpoint) -> Outcome:
        pending = self.annotation.pending
        average = self.annotation.estimate().prompt_tokens // max(1, len(pending))
        self.teacher = Teacher(
            endpoint,
            self.request.max_tokens,
            self.request.temperature,
            average,
            on_wait=self._waits,
        )
        samples = iter(pending)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.request.concurrency, len(pending))):
                    group.create_task(self._work(samples))
        finally:
            await self.teacher.close()
        if self.error:
            raise self.error
        return self.outcome

    async def _work(self, samples: Iterator[dict[str, Any]]) -> None:
        for sample in samples:
            if self.error or self.outcome.stopped:
                return
            try:
                await self._annotate(sample)
            except StoppedError:
                return
            except SampleError as error:
                self._failed(error)
            except Exception as error:
                # Raised when the others are done: what raises within the group cancels their requests.
                self._stop(error)
            if not self.outcome.stopped:
                self.done += 1
                self._show()

    async def _annotate(self, sample: Mapping[str, Any]) -> None:
        """Draw until a chain is accepted or no more are to be drawn."""
        [image] = await asyncio.to_thread(storage.read_images, pa.Table.from_pylist([dict(sample)]))
        options = question_of(sample, self.annotation.info.classes).options
        while self.annotation.is_open(sample) and not self.error:
            answer = await self._ask(sample, image)
            if answer is None:
                return
            self.failures_in_a_row = 0
            text, verdict = answer.text, Verdict(None, answer.reason)
            if not answer.reason:
                text = unwrap(answer.text)
                verdict = judge_text(text, sample["label"], options)
            await self._keep(sample, answer, text, verdict)

    async def _ask(self, sample: Mapping[str, Any], image: bytes) -> Answer | None:
        """One answer, paid from the budget; None when that does not allow one more."""
        request, prompt = self.request, self.annotation.prompt(sample)
        shown = image_tokens(request.model, sample["width"], sample["height"])
        most = self.price.of(shown + text_tokens(prompt), request.max_tokens)
        async with self.settled:
            while not self.budget.reserve(most):
                # What others set aside may turn out to be less.
                if self.budget.reserved <= 0:
                    self.outcome.stopped = (
                        f"one more answer could cost up to ${most:.4f}, and ${self.budget.spent:.4f} of "
                        f"--max-cost ${self.budget.limit:.4f} are spent"
                    )
                if self.outcome.stopped or self.error:
                    return None
                await self.settled.wait()
        cost = 0.0
        try:
            answer = await self.teacher.ask(sample["id"], image, prompt)
            cost = self.price.of(answer.prompt_tokens, answer.answer_tokens)
            return answer
        finally:
            async with self.settled:
                self.budget.settle(most, cost)
                self.settled.notify_all()

    async def _keep(self, sample: Mapping[str, Any], answer: Answer, text: str, verdict: Verdict) -> None:
        candidate = self.store.progress(sample["id"]).candidates
        row = {
            "id": sample["id"],
            "candidate": candidate,
            "text": text,
            "conclusion": verdict.conclusion,
            "accepted": verdict.accepted,
            "reason": verdict.reason,
            "prompt_version": TEACHER_PROMPT_VERSION,
            "model": answer.model,
            "image_sha256": sample["sha256"],
            "prompt_tokens": answer.prompt_tokens,
            "answer_tokens": answer.answer_tokens,
            "cost": None
            if self.request.price is None
            else self.price.of(answer.prompt_tokens, answer.answer_tokens),
            "raw": None if text == answer.text else answer.text,
        }
        async with self.writing:
            await asyncio.to_thread(self.store.add, sample["domain"], row)
        if verdict.reason:
            self.outcome.rejected[verdict.reason] += 1
            # Those that are asked about once more are the hard ones, which a good teacher gets wrong too.
            if verdict.reason != "wrong_class" or candidate == 0:
                self._rejected(verdict.reason)
        else:
            self.outcome.accepted += 1
            self.rejections_in_a_row.clear()
        self._show()

    def _rejected(self, reason: str) -> None:
        in_a_row = self.rejections_in_a_row[reason] + 1
        self.rejections_in_a_row = Counter({reason: in_a_row})
        if in_a_row == self.request.max_equal_rejections:
            remedy = _REMEDIES.get(reason, "see what it writes (rdmldg show teacher)")
            self._stop(
                TeacherError(
                    f"{in_a_row} answers in a row were rejected for one reason, {reason}; {remedy}, or go on "
                    "with --max-equal-rejections 0. They are kept"
                )
            )

    def _failed(self, error: SampleError) -> None:
        self.outcome.failed[str(error)] += 1
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= _FAILURES_IN_A_ROW:
            self._stop(TeacherError(f"{error}; so it was for {self.failures_in_a_row} samples in a row"))

    def _stop(self, error: Exception) -> None:
        """End cleanly: requests under way are paid for, so their answers are waited for."""
        self.error = self.error or error
        self.teacher.rate_limit.stop()

    def _waits(self, seconds: float) -> None:
        self._show(f", waits {math.ceil(seconds / 60)} min for the server's rate limit")

    def _show(self, note: str = "") -> None:
        store = self.store
        text = f"{store.prompt_tokens + store.answer_tokens} tokens"
        if self.request.price:
            text += f", ${store.cost:.4f}"
        self.progress(self.done, len(self.annotation.pending), text + note)
