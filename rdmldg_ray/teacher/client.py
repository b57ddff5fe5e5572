"""A teacher behind an OpenAI-compatible endpoint: an image and a question with options in, a chain out.

The label is withheld: this module never sees it.
"""

import base64
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdmldg_ray.datasets.images import viewable
from rdmldg_ray.teacher.pricing import text_tokens
from rdmldg_ray.teacher.rate_limit import RateLimit

if TYPE_CHECKING:
    import openai

# The client waits between them as the server asks, otherwise from half a second to eight.
_RETRIES = 8
_TIMEOUT_S = 120.0
_SHOWN = 300


class TeacherError(ValueError):
    """The endpoint gives no answers, whatever the sample; the message names the remedy."""


class SampleError(Exception):
    """The endpoint gave no answer for a sample."""


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher is.

    Attributes:
        base_url: of the API, with its version; OpenAI's own, or ``OPENAI_BASE_URL``, for None.
        api_key: for None the environment's ``OPENAI_API_KEY``; not a thing to pass on a command line.
    """

    model: str
    base_url: str | None = None
    api_key: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote, and what it took.

    Attributes:
        reason: why it is no chain whatever it says: ``refusal``, ``content_filter``, ``unfinished`` (at the
            token limit) or ``empty``; None for all else.
    """

    text: str
    reason: str | None
    prompt_tokens: int
    answer_tokens: int
    model: str


class Teacher:
    """Asks one endpoint for chains. To be used within one event loop, and closed.

    Args:
        max_tokens: of an answer.
        temperature: the server's default for None.
        prompt_tokens: of a request, about; for servers that do not count.

    Raises:
        TeacherError: without an API key.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        max_tokens: int,
        temperature: float | None,
        prompt_tokens: int,
    ):
        import openai

        api_key = endpoint.api_key or os.environ.get("OPENAI_API_KEY")
        if not api_key:
            raise TeacherError(
                "no API key: set OPENAI_API_KEY (to any word, for a server that asks for none), or use a "
                "teacher of your own (--teacher vllm --model ...)"
            )
        self.model = endpoint.model
        self.prompt_tokens = prompt_tokens
        self.rate_limit = RateLimit(prompt_tokens + max_tokens)
        self._secret = api_key
        self._settings: dict[str, Any] = {"max_completion_tokens": max_tokens}
        if temperature is not None:
            self._settings["temperature"] = temperature
        hooks: dict[str, list[Callable[..., Any]]] = {
            "request": [self.rate_limit.admit],
            "response": [self.rate_limit.learn],
        }
        self._client = openai.AsyncOpenAI(
            api_key=api_key,
            base_url=endpoint.base_url,
            max_retries=_RETRIES,
            timeout=_TIMEOUT_S,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
        )
        # A user and a password may stand before an @.
        self._shown_url = re.sub(r"//[^/]*@", "//", str(self._client.base_url).rstrip("/"))

    async def ask(self, sample_id: str, image: bytes, prompt: str) -> Answer:
        """One candidate for an encoded image, by a prompt of ``prompts.teacher_prompt``.

        Raises:
            TeacherError: when no sample would get an answer: no access, no such model, nothing left to pay
                with, a rate limit that does not let on.
            SampleError: when this one gets none after all retries.
        """
        import openai

        try:
            completion = await self._client.chat.completions.create(
                model=self.model, messages=[_turn(sample_id, image, prompt)], **self._settings
            )
        except openai.APIError as error:
            raise self._explained(error) from None
        # A proxy may answer with anything under the status of success.
        choices = getattr(completion, "choices", None)
        if choices is None:
            raise SampleError(f"{self._shown_url} answered with no completion; check the base URL")
        return self._answer(completion, choices)

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    def _answer(self, completion: Any, choices: Any) -> Answer:
        message = choices[0].message if choices else None
        refusal = getattr(message, "refusal", None)
        text = (message.content if message else None) or refusal or ""
        finish = choices[0].finish_reason if choices else None
        reason = None
        if refusal:
            reason = "refusal"
        elif finish == "content_filter":
            reason = "content_filter"
        elif finish == "length":
            reason = "unfinished"
        elif not text.strip():
            reason = "empty"
        usage = completion.usage
        return Answer(
            text=text,
            reason=reason,
            prompt_tokens=usage.prompt_tokens if usage else self.prompt_tokens,
            answer_tokens=usage.completion_tokens if usage else text_tokens(text),
            model=completion.model or self.model,
        )

    def _explained(self, error: "openai.APIError") -> TeacherError | SampleError:
        """What an error of the client means.

        A server's words about a key may repeat it, so they do not go on.
        """
        import openai

        where = self._shown_url
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return TeacherError(
                f"{where} refused access ({error.status_code}); check OPENAI_API_KEY, and that it may use "
                f"the model '{self.model}'"
            )
        if isinstance(error, openai.NotFoundError):
            return TeacherError(
                f"{where} does not know the model '{self.model}', or is no such API (404); correct "
                "--teacher or --base-url"
            )
        if isinstance(error, openai.RateLimitError):
            if error.code == "insufficient_quota":
                return TeacherError(f"{where}: the account has no credit left (insufficient_quota); add some")
            return TeacherError(
                f"{where} refuses more requests for now (429, {self._words(error)}); run the same command "
                "again later, it resumes"
            )
        if isinstance(error, openai.APITimeoutError):
            return SampleError(f"{where} did not answer within {_TIMEOUT_S:g} s")
        if isinstance(error, openai.APIConnectionError):
            return SampleError(f"no answer from {where}, or a cut one; check that it runs, and --base-url")
        if isinstance(error, openai.APIStatusError):
            return SampleError(f"{where} answered {error.status_code}: {self._words(error)}")
        return SampleError(f"{where} answered with what is no completion ({type(error).__name__})")

    def _words(self, error: "openai.APIError") -> str:
        return str(error.message).replace(self._secret, "***")[:_SHOWN]


def _turn(sample_id: str, image: bytes, prompt: str) -> Any:
    mime, data = viewable(sample_id, image)
    url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
            {"type": "text", "text": prompt},
        ],
    }
