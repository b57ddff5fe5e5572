"""What a teacher's answers cost: known prices, and estimates of tokens before anything is paid."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

# Five sections of a sentence or two each, until answers tell better.
EXPECTED_ANSWER_TOKENS = 350
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens.

    Raises:
        ValueError: for what is no price.
    """

    prompt: float
    answer: float

    def __post_init__(self) -> None:
        for price in (self.prompt, self.answer):
            if not (math.isfinite(price) and price >= 0):
                raise ValueError(
                    f"{price:g} is no price; give US dollars for a million tokens, 0 or more (--prices)"
                )

    def of(self, prompt_tokens: float, answer_tokens: float) -> float:
        """US dollars for so many tokens."""
        return (prompt_tokens * self.prompt + answer_tokens * self.answer) / 1e6


@dataclass(frozen=True)
class _Model:
    price: Price
    # Tokens of any image, and of each of its tiles.
    image_tokens: int = 85
    tile_tokens: int = 170


# OpenAI's list prices. They change; a user's own (--prices) come first.
_MODELS = {
    "gpt-4o": _Model(Price(2.50, 10.00)),
    "gpt-4o-2024-05-13": _Model(Price(5.00, 15.00)),
    "gpt-4o-mini": _Model(Price(0.15, 0.60), 2833, 5667),
    "gpt-4.1": _Model(Price(2.00, 8.00)),
}
_UNKNOWN = _Model(Price(0, 0))


def known_price(model: str) -> Price | None:
    """The list price of a model or a dated snapshot of it; None where it is not known."""
    found = _find(model)
    return found.price if found else None


def _find(model: str) -> _Model | None:
    return _MODELS.get(model) or _MODELS.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", model))


def text_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def image_tokens(model: str, width: int, height: int) -> int:
    """About how many tokens an image of a size in pixels has, by OpenAI's rule for high detail.

    It is scaled to fit a square of 2048, then to have its shorter side within 768, and cut into tiles of
    512. For a model that is not known this is a guess by GPT-4o's numbers.
    """
    kind = _find(model) or _UNKNOWN
    scale = min(1.0, 2048 / max(width, height))
    scale *= min(1.0, 768 / (scale * min(width, height)))
    tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
    return kind.image_tokens + kind.tile_tokens * tiles


@dataclass(frozen=True)
class CostEstimate:
    """What annotating takes if every sample needs one candidate, and if every one needs all."""

    samples: int
    prompt_tokens: int
    answer_tokens: int
    candidates: int

    def cost(self, price: Price) -> tuple[float, float]:
        """US dollars at the least and at the most."""
        least = price.of(self.prompt_tokens, self.answer_tokens)
        return least, least * self.candidates


def estimate(
    model: str,
    requests: Iterable[tuple[str, tuple[int, int]]],
    candidates: int,
    answer_tokens: float,
) -> CostEstimate:
    """CostEstimate the tokens for requests, each of a prompt and an image of some (width, height).

    Args:
        candidates: at most so many requests for each image.
        answer_tokens: to expect in an answer.
    """
    prompts = [text_tokens(prompt) + image_tokens(model, *size) for prompt, size in requests]
    return CostEstimate(len(prompts), sum(prompts), round(answer_tokens * len(prompts)), candidates)


class Budget:
    """What may still be spent, in US dollars; no limit for None.

    Each request sets aside the most that it may cost before it starts, so that requests at the same time
    cannot pass the limit together.
    """

    def __init__(self, limit: float | None, spent: float = 0.0):
        self.limit = limit
        self.spent = spent
        self.reserved = 0.0

    def reserve(self, cost: float) -> bool:
        """Set a cost aside, if the limit allows it."""
        if self.limit is not None and self.spent + self.reserved + cost > self.limit:
            return False
        self.reserved += cost
        return True

    def settle(self, reserved: float, cost: float) -> None:
        """Put what was paid in the place of what was set aside."""
        self.reserved -= reserved
        self.spent += cost
