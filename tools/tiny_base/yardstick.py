"""How well the model does on IconBed, which it never learns from: a linear probe, and zero-shot answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from rdmldg_ray.chains.format import ChainFormatError, display_name, match_class, parse_chain
from rdmldg_ray.chains.prompts import direct_prompt, reasoning_prompt
from tools.tiny_base.pictures import read_png

_CHAIN_TOKENS = 160  # longer chains are cut, and then count as wrong


@dataclass(frozen=True)
class Yard:
    """IconBed in memory: uint8 images [n, 96, 96, 3], label ids [n], the domain of each, class names."""

    images: np.ndarray
    labels: torch.Tensor
    domains: list[str]
    classes: list[str]


def read(iconbed: Path) -> Yard:
    """IconBed's parquet file as it is."""
    columns = ["image", "label", "label_id", "domain"]
    rows = pyarrow.parquet.read_table(iconbed, columns=columns).to_pylist()
    names = {row["label_id"]: row["label"] for row in rows}
    return Yard(
        images=np.stack([read_png(row["image"]) for row in rows]),
        labels=torch.tensor([row["label_id"] for row in rows]),
        domains=[row["domain"] for row in rows],
        classes=[names[number] for number in sorted(names)],
    )


def by_domain(right: Sequence[bool] | torch.Tensor, domains: list[str]) -> dict[str, float]:
    """Share (%) that is right, by domain, and the domains' mean."""
    scores = {
        domain: 100 * float(np.mean([bool(r) for r, d in zip(right, domains, strict=True) if d == domain]))
        for domain in dict.fromkeys(domains)
    }
    return scores | {"mean": float(np.mean(list(scores.values())))}


def show(scores: dict[str, float]) -> str:
    """Scores on one line."""
    return " ".join(f"{name} {score:.1f}" for name, score in scores.items())


def probe(pooled: torch.Tensor, yard: Yard, decay: float = 3e-3) -> dict[str, float]:
    """Accuracy (%) on each domain of a logistic regression on features [n, width] of the others."""
    right = torch.zeros(len(pooled), dtype=torch.bool)
    for held_out in dict.fromkeys(yard.domains):
        test = torch.tensor([domain == held_out for domain in yard.domains])
        x = (pooled - pooled[~test].mean(0)) / (pooled[~test].std(0) + 1e-6)
        weight = torch.zeros(x.shape[1], len(yard.classes), requires_grad=True)
        bias = torch.zeros(len(yard.classes), requires_grad=True)
        optim = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")
        optim.step(partial(_closure, optim, x[~test], yard.labels[~test], weight, bias, decay))
        right[test] = (x[test] @ weight + bias).argmax(1) == yard.labels[test]
    return by_domain(right, yard.domains)


def _closure(
    optim: torch.optim.LBFGS,
    x: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    decay: float,
) -> torch.Tensor:
    optim.zero_grad()
    loss = F.cross_entropy(x @ weight + bias, labels) + decay * weight.square().sum() / 2
    loss.backward()
    return loss


def _prompted(processor: Idefics3Processor, question: str, images: np.ndarray) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turns: list[Any] = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    shown = [[Image.fromarray(image)] for image in images]
    return dict(processor(text=[prompt] * len(images), images=shown, return_tensors="pt"))


def visible(segments: torch.Tensor, parents: torch.Tensor | None = None) -> torch.Tensor:
    """Who sees whom: bool [batch, 1, length, length], from the segment of each token [batch, length].

    A token sees what comes before it in its own segment, in segment 0, and in its segment's parent.
    """
    length = segments.shape[1]
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    seen = (key == 0) | (key == query)
    if parents is not None:
        seen |= key == parents.unsqueeze(2)
    return (earlier & seen).unsqueeze(1)


@torch.inference_mode()
def zero_shot_direct(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, yard: Yard, batch: int = 64
) -> dict[str, float]:
    """Direct pathway: the class whose name is the likeliest answer, its end of turn included.

    All names follow the same prompt in one sequence, each a segment that the others do not see.
    """
    end = processor.tokenizer.eos_token
    names = [processor.tokenizer(display_name(name) + end).input_ids for name in yard.classes]
    owner = torch.tensor([i for i, name in enumerate(names) for _ in name])
    offsets = torch.tensor([place for name in names for place in range(len(name))])
    answers = torch.tensor([token for name in names for token in name])
    right: list[bool] = []
    for start in range(0, len(yard.images), batch):
        images = yard.images[start : start + batch]
        inputs = _prompted(processor, direct_prompt(yard.classes), images)
        length = inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], answers.expand(len(images), -1)], dim=1)
        segments = torch.cat([torch.zeros(length, dtype=torch.long), owner + 1])
        seen = visible(segments.unsqueeze(0)).expand(len(images), -1, -1, -1)
        whole = inputs | {
            "input_ids": ids,
            "attention_mask": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
            "position_ids": torch.cat([torch.arange(length), length + offsets]).expand(len(images), -1),
        }
        logs = model(**whole).logits.float().log_softmax(-1)
        # A name's first token is predicted at the prompt's end, its others at the token before.
        places = torch.arange(length, ids.shape[1]) - 1
        places[offsets == 0] = length - 1
        each = logs[:, places].gather(2, answers.expand(len(images), -1).unsqueeze(-1)).squeeze(-1)
        scores = torch.zeros(len(images), len(names)).index_add(1, owner, each)
        right += (scores.argmax(1) == yard.labels[start : start + batch]).tolist()
    return by_domain(right, yard.domains)


@torch.inference_mode()
def zero_shot_reasoning(
    model: Any, processor: Idefics3Processor, yard: Yard, batch: int = 128
) -> tuple[dict[str, float], dict[str, float]]:
    """Reasoning pathway, greedily: shares (%) of well-formed chains, and of right conclusions."""
    generate: Any = cast(Any, model).generate  # its annotation wants a class that models are not
    formed: list[bool] = []
    right: list[bool] = []
    for start in range(0, len(yard.images), batch):
        images = yard.images[start : start + batch]
        inputs: dict[str, Any] = dict(_prompted(processor, reasoning_prompt(yard.classes), images))
        output = generate(**inputs, max_new_tokens=_CHAIN_TOKENS, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :]
        texts = processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        for text, label in zip(texts, yard.labels[start : start + batch].tolist(), strict=True):
            try:
                concluded = match_class(parse_chain(text).conclusion, yard.classes)
            except ChainFormatError:
                concluded = None
                formed.append(False)
            else:
                formed.append(True)
            right.append(concluded == label)
    return by_domain(formed, yard.domains), by_domain(right, yard.domains)
