"""The join: the encoder that sees and a decoder that is new learn to answer questions about drawings.

Each drawing comes with several short tasks in one sequence, [image | question | answer | answer |
question | answer ...]: every answer sees the image, its own question and itself, not the others, and
counts its positions from there on. To the model that is the same as one conversation a task; the
image is encoded once, and a question with two answers (one of each pathway) is read once.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from tools.tiny_base import parallel, vision, yardstick
from tools.tiny_base import pictures as drawings
from tools.tiny_base.model import END, IMAGE_TOKENS
from tools.tiny_base.muon import Muon
from tools.tiny_base.pictures import Picture
from tools.tiny_base.text import Texts

BATCH = 32
# What a kind of task weighs; a chain's loss is the mean of some 75 tokens, most of them easy.
KINDS = ("direct", "name", "chain")
TASK_WEIGHTS = {"direct": 1.0, "name": 0.5, "chain": 3.0}
VISION_WEIGHT = 0.5  # of the vision stage's own goals, which go on
ENCODER_SHARE = 0.25  # of the learning rate, once the decoder has found its feet
FROZEN_SHARE = 0.1  # of the steps, in which the encoder is left alone

_IGNORED = -100


class Batches:
    """Step number to a batch of drawings with tasks; the same number always gives the same batch."""

    def __init__(
        self,
        processor: Idefics3Processor,
        pictures: list[Picture],
        views: np.ndarray,
        texts: Texts,
        seen: vision.Batches,
    ):
        self.tokenizer = processor.tokenizer
        self.pictures, self.views, self.texts, self.seen = pictures, views, texts, seen
        around = "<fake_token_around_image>"
        prefix = f"<|user|>{around}<global-img>{processor.image_token * IMAGE_TOKENS}{around}"
        self.prefix = self.tokenizer(prefix).input_ids

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        start = (self.seen.seed, 1, step)
        chosen = np.random.default_rng(start).choice(len(self.pictures), BATCH, p=self.seen.weights)
        chosen = chosen[rank::world]
        images, rows = [], []
        for place, picture in enumerate(self.pictures[index] for index in chosen):
            random = np.random.default_rng((*start, rank + place * world))
            view = picture.views[-1] if random.random() < 0.3 else picture.views[0]
            image = drawings.augment(self.views[view], random)
            images.append(image)
            question, first, label, second, chain = self.texts.both(picture, image, random)
            answers = [("direct", first, label), ("chain", second, chain)]
            # Chains are long: half of the drawings have one, the others a second short question.
            tasks = [(question, answers if place % 2 else answers[:1])]
            if place % 4 == 0:
                name_asked, name = self.texts.name(picture)
                tasks.append((name_asked, [("name", "", name)]))
            elif place % 4 == 2:
                asked, answer = self.texts.direct(picture, random)
                tasks.append((asked, [("direct", "", answer)]))
            rows.append(self.sequence(tasks))
        return self.seen.goals(chosen) | self.pad(rows) | {"pixels": vision.to_pixels(np.stack(images))}

    def sequence(self, tasks: list[tuple[str, list[tuple[str, str, str]]]]) -> dict[str, list]:
        """One drawing's token ids, segments (0: the image), parents, positions, targets, weights, kinds."""
        length = len(self.prefix)
        row: dict[str, list] = {
            "ids": list(self.prefix),
            "segments": [0] * length,
            "parents": [0] * length,
            "positions": list(range(length)),
            "targets": [_IGNORED] * length,
            "weights": [0.0] * length,
            "kinds": [0] * length,
        }
        segment = 0
        for question, answers in tasks:
            shared = self.tokenizer(question).input_ids
            segment += 1
            parent = segment
            self._add(row, shared, [], length, parent, parent, "")
            for kind, rest, answer in answers:
                segment += 1
                asked = self.tokenizer(f"{rest}{END}\n<|assistant|>").input_ids
                answered = self.tokenizer(answer + END).input_ids
                self._add(row, asked, answered, length + len(shared), segment, parent, kind)
        return row

    @staticmethod
    def _add(
        row: dict[str, list],
        asked: list[int],
        answered: list[int],
        start: int,
        segment: int,
        parent: int,
        kind: str,
    ) -> None:
        count, known = len(asked) + len(answered), len(asked) - (1 if answered else 0)
        row["ids"] += asked + answered
        row["segments"] += [segment] * count
        row["parents"] += [parent] * count
        row["positions"] += range(start, start + count)
        # The token before an answer's token is where that one is predicted.
        end = [_IGNORED] if answered else []
        row["targets"] += [_IGNORED] * known + answered + end
        weight = TASK_WEIGHTS[kind] / len(answered) if answered else 0.0
        row["weights"] += [0.0] * known + [weight] * len(answered) + [0.0] * len(end)
        row["kinds"] += (
            [0] * known + [KINDS.index(kind) + 1 if answered else 0] * len(answered) + [0] * len(end)
        )

    @staticmethod
    def pad(rows: list[dict[str, list]]) -> dict[str, torch.Tensor]:
        """Rows to tensors [batch, length]; padding is a segment of its own."""
        longest = max(len(row["ids"]) for row in rows)
        fill: dict[str, float] = {
            "ids": 0,
            "segments": -1,
            "parents": -1,
            "positions": 0,
            "targets": _IGNORED,
        }
        fill |= {"weights": 0.0, "kinds": 0}
        return {
            key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])
            for key, value in fill.items()
        }


def losses_of(
    model: Idefics3ForConditionalGeneration, goals: vision.Goals, batch: dict[str, torch.Tensor], frozen: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The text's loss and the vision goals' loss; and the text's loss token by token [batch, length]."""
    with parallel.mixed_precision():
        with torch.set_grad_enabled(not frozen):
            tokens = vision.encode(model.model.vision_model, batch["pixels"])
        images = model.model.connector(tokens)
        embedded = model.get_input_embeddings()(batch["ids"])
        where = (batch["ids"] == model.config.image_token_id).unsqueeze(-1)
        embedded = embedded.masked_scatter(where, images.to(embedded.dtype))
        hidden = model.model.text_model(
            inputs_embeds=embedded,
            attention_mask=yardstick.visible(batch["segments"], batch["parents"]),
            position_ids=batch["positions"],
            use_cache=False,
        ).last_hidden_state
        asked = batch["targets"] != _IGNORED
        logits = model.lm_head(hidden[asked])
        if not frozen:  # the vision stage's goals are the encoder's
            seen = VISION_WEIGHT * vision.weighted_sum(vision.goal_losses(goals, tokens, batch))
    each = F.cross_entropy(logits.float(), batch["targets"][asked], reduction="none")
    text = (each * batch["weights"][asked]).sum() / len(batch["ids"])
    per_token = torch.zeros_like(batch["weights"]).masked_scatter(asked, each.detach())
    return {"text": text} | ({} if frozen else {"vision": seen}), per_token


def optimizers(
    model: Idefics3ForConditionalGeneration, goals: vision.Goals, lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for all else; the encoder's groups at a share of the rate."""
    encoder, rest = model.model.vision_model, [*model.model.connector.parameters()]
    rest += list(model.model.text_model.parameters())
    inner = {id(p) for p in encoder.encoder.parameters() if p.ndim == 2}
    embedding = id(model.get_input_embeddings().weight)
    muon = [
        {"params": [p for p in encoder.parameters() if id(p) in inner], "share": ENCODER_SHARE},
        {"params": [p for p in rest if p.ndim == 2 and id(p) != embedding], "share": 1.0},
    ]
    adam = [
        {"params": [p for p in encoder.parameters() if id(p) not in inner], "share": ENCODER_SHARE},
        {"params": [p for p in rest if p.ndim != 2 or id(p) == embedding], "share": 1.0},
        {"params": list(goals.parameters()), "share": ENCODER_SHARE},
    ]
    return [
        Muon(muon, lr=lr, weight_decay=0.05),
        torch.optim.AdamW(adam, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def train(
    model: Idefics3ForConditionalGeneration,
    goals: vision.Goals,
    batches: Batches,
    iconbed: Path,
    cache: Path,
    steps: int,
    lr: float = 2e-3,
    frozen_share: float = FROZEN_SHARE,
) -> None:
    """Run the join in place, or resume it from its checkpoint; the encoder is left alone at first."""
    rank, world = parallel.rank_and_world()
    checkpoint = cache / "join.pt"
    torch.manual_seed(0)
    optims = optimizers(model, goals, lr)
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        goals.load_state_dict(state["goals"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        step = state["step"]
    yard = yardstick.read(iconbed)
    parameters = [*model.parameters(), *goals.parameters()]
    started, saved_at, first = time.time(), time.time(), step
    mean: dict[str, float] = {}
    ahead = ThreadPoolExecutor(1)
    upcoming = ahead.submit(batches, step, rank, world)
    while step < steps:
        progress = step / steps
        now = lr * min((step + 1) / 40, 1, max(1 - progress, 0.01) * 2)
        frozen = progress < frozen_share
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = now * group["share"]
        batch = upcoming.result()
        upcoming = ahead.submit(batches, step + 1, rank, world)
        losses, per_token = losses_of(model, goals, batch, frozen)
        torch.stack(list(losses.values())).sum().backward()
        parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        shown = {name: loss.item() for name, loss in losses.items()} | by_kind(batch, per_token)
        for name, value in shown.items():
            mean[name] = 0.98 * mean.get(name, value) + 0.02 * value
        step += 1
        if rank:
            continue
        if step % 10 == 0:
            speed = (step - first) * BATCH / (time.time() - started)
            line = " ".join(f"{name} {value:.3f}" for name, value in mean.items())
            print(f"join {step}/{steps} {line} lr {now:.1e} {speed:.0f} images/s", flush=True)
        if time.time() - saved_at > 300:
            saved_at = time.time()
            _save(checkpoint, model, goals, optims, step)
    if rank == 0 and step > first:
        _save(checkpoint, model, goals, optims, step)
        scores = yardstick.probe(
            vision.features(model.model.vision_model, vision.to_pixels(yard.images)), yard
        )
        print(f"join {step}, the end, probe " + yardstick.show(scores), flush=True)
    ahead.shutdown(cancel_futures=True)


def _save(
    checkpoint: Path,
    model: Idefics3ForConditionalGeneration,
    goals: vision.Goals,
    optims: list[torch.optim.Optimizer],
    step: int,
) -> None:
    state = {"model": model.state_dict(), "goals": goals.state_dict(), "step": step,
             "optims": [optim.state_dict() for optim in optims]}  # fmt: skip
    torch.save(state, checkpoint.with_suffix(".part"))
    checkpoint.with_suffix(".part").replace(checkpoint)


def by_kind(batch: dict[str, torch.Tensor], per_token: torch.Tensor) -> dict[str, float]:
    """Mean loss of a label's tokens, of a name's and of a chain's."""
    return {
        kind: per_token[batch["kinds"] == number].mean().item()
        for number, kind in enumerate(KINDS, start=1)
        if (batch["kinds"] == number).any()
    }
