"""From image, question and options to model inputs, the same for trainer and engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from rdmldg_ray.chains.format import display_name
from rdmldg_ray.chains.prompts import QUESTION, direct_prompt, reasoning_prompt


def render_prompt(processor: Any, text: str) -> str:
    """One user turn of an image and a text, as the model's own chat template writes it."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return str(processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))


def _token_ids(processor: Any, text: str, **options: bool) -> list[int]:
    # A single text is not padded. But a tokenizer keeps whether it pads from call to call, and several
    # threads collate with this one: where all ask for padding, none turns it off under another's batch.
    ids: list[int] = processor.tokenizer(text, padding=True, **options)["input_ids"]
    return ids


@dataclass(frozen=True)
class EncodedImages:
    """A batch of images with the prompt's shared prefix."""

    prefixes: list[list[int]]
    """Token ids up to where the two pathways part, one list for each image; image tokens expanded."""
    model_inputs: dict[str, torch.Tensor]
    """What the vision encoder takes: ``pixel_values`` and whatever else the family has."""


class PathwayPrompts:
    """The prompts of both pathways for one question and list of options, tokenized once.

    ``direct_tail`` and ``reasoning_tail`` are the token ids of each pathway's prompt after the
    longest prefix that both have in common. Cutting between tokens, not characters, keeps every
    token what it would be in a prompt of its own.

    ``mm_processor_kwargs`` are those of ``model.mm_processor_kwargs``.
    """

    def __init__(
        self,
        processor: Any,
        options: Sequence[str],
        mm_processor_kwargs: dict[str, Any] | None = None,
        question: str = QUESTION,
    ):
        self.processor = processor
        self.options = [display_name(option) for option in options]
        self.mm_processor_kwargs = mm_processor_kwargs or {}
        self.direct_text = render_prompt(processor, direct_prompt(options, question))
        self.reasoning_text = render_prompt(processor, reasoning_prompt(options, question))
        direct = _token_ids(processor, self.direct_text)
        reasoning = _token_ids(processor, self.reasoning_text)
        self.direct_ids: list[int] = direct  # the image placeholder is not expanded
        self.reasoning_ids: list[int] = reasoning
        shared = 0
        while shared < min(len(direct), len(reasoning)) and direct[shared] == reasoning[shared]:
            shared += 1
        self.direct_tail: list[int] = direct[shared:]
        self.reasoning_tail: list[int] = reasoning[shared:]
        assert self.direct_tail and self.reasoning_tail, "a pathway's prompt is a prefix of the other's"
        image_token = processor.image_token
        tail_text = processor.tokenizer.decode(self.reasoning_tail)
        assert image_token not in tail_text, "the chat template puts the image after the text"

    def asking(self, sample: Mapping[str, Any]) -> "PathwayPrompts":
        """The prompts for a sample: of its own question and options, where its row has them, or these."""
        if sample.get("question") is None:
            return self
        return PathwayPrompts(self.processor, sample["options"], self.mm_processor_kwargs, sample["question"])

    def target_ids(self, text: str) -> list[int]:
        """An answer as the model is to write it: its tokens and the end of the turn."""
        ids = _token_ids(self.processor, text, add_special_tokens=False)
        return [*ids, self.processor.tokenizer.eos_token_id]

    @cached_property
    def option_ids(self) -> list[list[int]]:
        """``target_ids`` of each option."""
        return [self.target_ids(option) for option in self.options]

    def encode(
        self, images: Sequence[Image.Image], asked: "Sequence[PathwayPrompts] | None" = None
    ) -> EncodedImages:
        """Run the image processor and expand the image tokens, for a batch of RGB images.

        Args:
            asked: the prompts for each image; these for all by default.
        """
        asked = asked or [self] * len(images)
        inputs = self.processor(
            text=[prompts.reasoning_text for prompts in asked],
            images=[[image] for image in images],
            padding=True,
            return_tensors="pt",
            **self.mm_processor_kwargs,
        )
        token_ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        inputs.pop("mm_token_type_ids", None)  # follows from the tokens; see mtct.positions
        prefixes = [
            ids[keep.bool()].tolist()[: -len(prompts.reasoning_tail)]
            for ids, keep, prompts in zip(token_ids, mask, asked, strict=True)
        ]
        return EncodedImages(prefixes, dict(inputs))
