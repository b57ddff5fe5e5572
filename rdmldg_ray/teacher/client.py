"""A teacher behind an OpenAI-compatible endpoint: an image and a question with options in, a chain out.

The label is withheld: this module never sees it.
"""

import base64
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rdmldg_ray.chains.format import SECTIONS
from rdmldg_ray.datasets.images import viewable
from rdmldg_ray.teacher.pricing import text_tokens
from rdmldg_ray.teacher.rate_limit import RateLimit

if TYPE_CHECKING:
    import openai

# The client waits between them as the server asks, otherwise from half a second to eight.
_RETRIES = 8
_TIMEOUT_S = 120.0
_SHOWN = 300
# A server that counts more for one answer counts something else.
_MOST_TOKENS = 10_000_000
# What a text that can be trained on does not hold: control characters, halves of a character, and what
# stands for bytes that are no text.
_BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffd]")
# A request that a filter refuses, by the words of OpenAI, Azure, OpenRouter, Alibaba and Google.
_FILTER_CODE = re.compile(
    r"content_?filter|content_policy|policy_?violation|moderation|responsible_?ai|data_?inspection"
    r"|prohibited_?content|\bsafety\b",
    re.IGNORECASE,
)
_FILTER_WORDS = re.compile(
    r"content[ _](?:filter|management policy|policy)|safety system|policy violation|was flagged"
    r"|inappropriate content",
    re.IGNORECASE,
)
_FILTER_STATUS = (400, 403, 422, 451)


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
        text: as it was written; what cannot be stored in it is replaced.
        reason: why it is no chain whatever it says: ``refusal``, ``content_filter``, ``unfinished`` (at the
            token limit), ``empty``, ``only_reasoning`` (the server set all of it apart as reasoning),
            ``no_text`` or ``broken_text``; None for all else.
        prompt_tokens: 0 when the request was refused unread, by a filter.
    """

    text: str
    reason: str | None
    prompt_tokens: int
    answer_tokens: int
    model: str


def clean_text(text: str) -> str:
    """A text that can be stored as UTF-8; halves of a character are replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def unwrap(text: str) -> str:
    """The chain in what a teacher wrote: without thinking, a greeting, or a code fence around it.

    What stands between the sections stays, and a text without first and last tag is returned as it is.
    """
    # The opening tag may stand in the prompt, and what is thought may hold a draft of the chain.
    _, _, written = text.rpartition("</think>")
    first, last = f"<{SECTIONS[0]}>", f"</{SECTIONS[-1]}>"
    start, end = written.find(first), written.rfind(last)
    return written[start : end + len(last)] if 0 <= start < end else text


class Teacher:
    """Asks one endpoint for chains. To be used within one event loop, and closed.

    Args:
        max_tokens: of an answer.
        temperature: the server's default for None.
        prompt_tokens: of a request, about; for servers that do not count.
        on_wait: as ``RateLimit`` takes it.

    Raises:
        TeacherError: without an API key or a URL that can be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        max_tokens: int,
        temperature: float | None,
        prompt_tokens: int,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ):
        import openai

        api_key = _checked_key(endpoint.api_key or os.environ.get("OPENAI_API_KEY"))
        base_url = _checked_url(endpoint.base_url or os.environ.get("OPENAI_BASE_URL"))
        self.model = endpoint.model
        self.prompt_tokens = prompt_tokens
        self.rate_limit = RateLimit(prompt_tokens + max_tokens, on_wait=on_wait)
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
            base_url=base_url,
            max_retries=_RETRIES,
            timeout=_TIMEOUT_S,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
        )
        self._shown_url = _shown(str(self._client.base_url).rstrip("/"))

    async def ask(self, sample_id: str, image: bytes, prompt: str) -> Answer:
        """One candidate for an encoded image, by a prompt of ``prompts.teacher_prompt``.

        Raises:
            TeacherError: when no sample would get an answer: no access, no such model, nothing left to pay
                with, a rate limit that does not let on.
            SampleError: when this one gets none after all retries.
        """
        import openai

        turn = _turn(sample_id, image, prompt)
        try:
            body = await self._create(turn)
        except openai.APIStatusError as error:
            if _is_filtered(error):
                return Answer(clean_text(self._words(error)), "content_filter", 0, 0, self.model)
            raise self._explained(error) from None
        except openai.APIError as error:
            raise self._explained(error) from None
        return self._answer(body)

    async def _create(self, turn: Any) -> bytes:
        """The answer's bytes: servers answer with much that the client's own types do not hold."""
        import openai

        create = self._client.chat.completions.with_raw_response.create
        settings = self._settings
        try:
            response = await create(model=self.model, messages=[turn], **settings)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            limit = settings.get("max_completion_tokens")
            # Only newer servers know this name.
            if limit is None or "max_completion_tokens" not in error.response.text:
                raise
            others = {name: value for name, value in settings.items() if name != "max_completion_tokens"}
            self._settings = {**others, "max_tokens": limit}
            response = await create(model=self.model, messages=[turn], **self._settings)
        content: bytes = response.http_response.content
        return content

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    def _answer(self, body: bytes) -> Answer:
        """What an answer says, whatever it looks like.

        Raises:
            SampleError: when it is no completion. A proxy may answer with anything under the status of
                success.
        """
        try:
            value = json.loads(body.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            value = None
        value = value if isinstance(value, dict) else {}
        choices = value.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            said = self._hidden(_told(value))
            raise SampleError(
                f"{self._shown_url} answered with no completion{f' ({said})' if said else ''}; check the "
                "base URL"
            )
        choice = choices[0] if choices else {}
        text, reason = _read_message(choice.get("message"), choice.get("finish_reason"))
        usage, model = value.get("usage"), value.get("model")
        usage = usage if isinstance(usage, dict) else {}
        return Answer(
            text=clean_text(text),
            reason=reason,
            prompt_tokens=_tokens(usage.get("prompt_tokens"), self.prompt_tokens),
            answer_tokens=_tokens(usage.get("completion_tokens"), text_tokens(text)),
            model=clean_text(model) if isinstance(model, str) and model else self.model,
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

    def _words(self, error: "openai.APIStatusError") -> str:
        """What the server says is wrong."""
        return self._hidden(_told(error.body) or error.response.text)

    def _hidden(self, words: str) -> str:
        return words.replace(self._secret, "***")[:_SHOWN]


def _checked_key(key: str | None) -> str:
    """The key without white space around it, as a file's last line brings it."""
    key = (key or "").strip()
    if not key:
        raise TeacherError(
            "no API key: set OPENAI_API_KEY (to any word, for a server that asks for none), or use a "
            "teacher of your own (--teacher vllm --model ...)"
        )
    if not (key.isascii() and key.isprintable()):
        raise TeacherError(
            "the API key holds a character that no key holds (a line break, or a letter that is not "
            "ASCII); copy it again to OPENAI_API_KEY"
        )
    return key


def _checked_url(url: str | None) -> str | None:
    if not url:
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is no number
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", url)
    except ValueError:
        valid = False
    if not valid:
        raise TeacherError(
            f"'{_shown(url)}' is no URL of an API; give one such as https://host/v1 (--base-url, or "
            "OPENAI_BASE_URL)"
        )
    return url


def _shown(url: str) -> str:
    # A user and a password may stand before an @.
    return re.sub(r"//[^/]*@", "//", url)


def _is_filtered(error: "openai.APIStatusError") -> bool:
    """Whether a filter refused this request: another one may pass, the same one never does."""
    if error.status_code not in _FILTER_STATUS:
        return False
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("innererror")
    codes = [body.get("code"), body.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    return any(isinstance(code, str) and _FILTER_CODE.search(code) for code in codes) or bool(
        _FILTER_WORDS.search(_told(body))
    )


def _told(body: Any, depth: int = 4) -> str:
    """A server's words in what it answers, or an empty text; FastAPI's are its ``detail``."""
    if isinstance(body, str):
        return body
    if isinstance(body, list) and depth:
        return "; ".join(filter(None, (_told(part, depth - 1) for part in body)))
    if isinstance(body, dict) and depth:
        told = (body[key] for key in ("message", "detail", "error", "msg") if body.get(key))
        return _told(next(told, ""), depth - 1)
    return ""


def _read_message(message: Any, finish: Any) -> tuple[str, str | None]:
    """A message's text, and why it is no chain whatever it says."""
    message = message if isinstance(message, dict) else {}
    content, refusal = message.get("content"), message.get("refusal")
    text = _content_text(content)
    thought = next(
        (found for key in ("reasoning_content", "reasoning") if (found := _content_text(message.get(key)))),
        None,
    )
    if refusal:
        return text or _content_text(refusal) or str(refusal), "refusal"
    if finish == "content_filter":
        return text or "", "content_filter"
    if finish == "length":
        return text or thought or "", "unfinished"
    if text is None:
        return str(content), "no_text"
    if not text.strip():
        return (thought, "only_reasoning") if thought else (text, "empty")
    return text, "broken_text" if _BROKEN.search(text) else None


def _content_text(content: Any) -> str | None:
    """The text of a message's content, or of its parts joined; None when it is something else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(text for text in texts if isinstance(text, str))
    return None


def _tokens(counted: Any, estimate: int) -> int:
    """A server's count, or an estimate where it is none."""
    try:
        count = math.ceil(float(counted))
    except (TypeError, ValueError, OverflowError):
        return estimate
    return count if 0 <= count <= _MOST_TOKENS else estimate


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
