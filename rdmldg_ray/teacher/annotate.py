"""Annotation: a teacher is asked for chains until each sample has one that can be trained on."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.chains.format import Verdict, judge_text
from rdmldg_ray.chains.prompts import TEACHER_PROMPT_VERSION, teacher_prompt
from rdmldg_ray.chains.questions import question_of
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.teacher.client import Answer, Endpoint, SampleError, Teacher, TeacherError
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


class Limits(TypedDict, total=False):
    """The fields of ``AnnotationRequest`` that have a default, the price aside."""

    candidates: int
    max_tokens: int
    temperature: float | None
    concurrency: int
    max_cost: float | None
    max_samples: int | None


@dataclass
class Outcome:
    """What became of an annotation.

    Attributes:
        teacher: the name that the chains have, as ``data.chains`` takes it.
        location: where they lie.
        stopped: why not all samples were asked about, where that is so.
        failed: what was wrong with samples that got no answer, and how often.
    """

    teacher: str
    location: str
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    stopped: str | None = None


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
        self.finished = sum(not self._open(row) for row in asked)
        self.pending = [row for row in asked if self._open(row)] + new

    def estimate(self) -> CostEstimate:
        """What asking about the pending samples takes; the answers so far tell how long answers are."""
        store = self.store
        expected = store.answer_tokens / store.answers if store.answers else EXPECTED_ANSWER_TOKENS
        requests = [(self.prompt(row), (row["width"], row["height"])) for row in self.pending]
        return estimate(self.request.model, requests, self.request.candidates, expected)

    def no_outcome(self) -> Outcome:
        """The outcome before anything was asked."""
        return Outcome(self.request.teacher, self.store.location)

    def prompt(self, sample: Mapping[str, Any]) -> str:
        """What the teacher is asked about a sample; never the label."""
        asked = question_of(sample, self.info.classes)
        return teacher_prompt(asked.options, asked.text)

    def run(self, endpoint: Endpoint, progress: Callable[[int, int, str], None]) -> Outcome:
        """Ask about the pending samples.

        Args:
            progress: called with samples done, all that this call is about, and a word on tokens and cost.

        Raises:
            TeacherError: when the endpoint gives no answers. What was answered until then is kept.
        """
        self.store.begin()
        try:
            return asyncio.run(_Run(self, progress).all(endpoint))
        finally:
            self.store.flush()

    def _open(self, row: Mapping[str, Any]) -> bool:
        found = self.store.progress(row["id"])
        return not found.accepted and found.candidates < self.request.candidates


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
        self.error: TeacherError | None = None
        self.done = 0
        self.failures_in_a_row = 0
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
            except TeacherError as error:
                self._stop(error)
            except SampleError as error:
                self._failed(error)
            if not self.outcome.stopped:
                self.done += 1
                self._show()

    async def _annotate(self, sample: Mapping[str, Any]) -> None:
        """Draw until a chain is accepted or there are no more candidates to draw."""
        [image] = await asyncio.to_thread(storage.read_images, pa.Table.from_pylist([dict(sample)]))
        drawn = self.store.progress(sample["id"]).candidates
        for candidate in range(drawn, self.request.candidates):
            answer = await self._ask(sample, image)
            if answer is None:
                return
            self.failures_in_a_row = 0
            verdict = Verdict(None, answer.reason)
            if not answer.reason:
                options = question_of(sample, self.annotation.info.classes).options
                verdict = judge_text(answer.text, sample["label"], options)
            await self._keep(sample, candidate, answer, verdict)
            if verdict.accepted:
                return

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

    async def _keep(
        self, sample: Mapping[str, Any], candidate: int, answer: Answer, verdict: Verdict
    ) -> None:
        row = {
            "id": sample["id"],
            "candidate": candidate,
            "text": answer.text,
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
        }
        async with self.writing:
            await asyncio.to_thread(self.store.add, sample["domain"], row)
        if verdict.reason:
            self.outcome.rejected[verdict.reason] += 1
        else:
            self.outcome.accepted += 1
        self._show()

    def _failed(self, error: SampleError) -> None:
        self.outcome.failed[str(error)] += 1
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= _FAILURES_IN_A_ROW:
            self._stop(TeacherError(f"{error}; so it was for {self.failures_in_a_row} samples in a row"))

    def _stop(self, error: TeacherError) -> None:
        """End cleanly: requests under way are paid for, so their answers are waited for."""
        self.error = self.error or error
        self.teacher.rate_limit.stop()

    def _show(self) -> None:
        store = self.store
        text = f"{store.prompt_tokens + store.answer_tokens} tokens"
        if self.request.price:
            text += f", ${store.cost:.4f}"
        self.progress(self.done, len(self.annotation.pending), text)
