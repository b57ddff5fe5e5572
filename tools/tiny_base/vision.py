"""The vision stage: an encoder learns to see, before there is a decoder to speak.

Four goals on augmented drawings: the teacher's features of the *clean* drawing (so that style does
not matter), the concept across all sets that draw it, its keywords, and to find the drawing's partner
in the batch (the same concept drawn by others, or the same drawing in lines alone). A linear probe on
IconBed, one domain held out at a time, is logged as a yardstick.
"""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

from tools.tiny_base import parallel, yardstick
from tools.tiny_base import pictures as drawings
from tools.tiny_base.model import PATCH
from tools.tiny_base.pictures import Picture

BATCH = 128
WORD_COUNT = 4  # a keyword must belong to this many drawings to be a goal
KEPT_PATCHES = 40  # of 64, for most of the training: most patches of a drawing are blank

# Unicode's subgroups of faces, people and signs: many drawings, little to learn from.
_COMMON = (
    "arrow",
    "av-symbol",
    "emotion",
    "face-",
    "family",
    "geometric",
    "hand",
    "heart",
    "math",
    "other-symbol",
    "person",
    "punctuation",
    "time",
    "transport-sign",
    "warning",
    "zodiac",
)


class Goals(nn.Module):
    """The encoder's pooled features to the goals."""

    def __init__(self, width: int, concepts: int, words: int, teacher: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.concepts = nn.Linear(width, concepts)
        self.words = nn.Linear(width, words)
        self.teacher = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, teacher))
        self.pairs = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 128))

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[batch, width] to logits of concepts, of words, the teacher's features, and what pairs share."""
        pooled = self.norm(pooled)
        return self.concepts(pooled), self.words(pooled), self.teacher(pooled), self.pairs(pooled)


def encode(vision: Idefics3VisionTransformer, pixels: torch.Tensor, kept: int | None = None) -> torch.Tensor:
    """[batch, 3, 96, 96] to tokens [batch, patches, width]; ``kept``: only so many patches, by ink."""
    patch = PATCH
    grid = pixels.shape[-1] // patch
    mask = torch.ones(len(pixels), grid, grid, dtype=torch.bool)
    tokens = vision.embeddings(pixel_values=pixels, patch_attention_mask=mask)
    if kept:
        ink = F.avg_pool2d((1 - pixels).mean(1, keepdim=True), patch).flatten(1)
        chosen = (ink + 0.1 * torch.rand_like(ink)).topk(kept, dim=1).indices
        tokens = tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    tokens = vision.encoder(inputs_embeds=tokens, attention_mask=None).last_hidden_state
    return vision.post_layernorm(tokens)


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [batch, 96, 96, 3] to float [batch, 3, 96, 96] in -1..1, as the image processor does."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def sampling_weights(pictures: list[Picture]) -> np.ndarray:
    """How often each drawing is shown, summing to 1: things more than faces, people and signs."""
    weights = [
        (0.6 if picture.group.startswith(_COMMON) else 2.0)
        if picture.group
        else (1.0 if picture.coloured else 0.6)
        for picture in pictures
    ]
    return np.array(weights) / sum(weights)


class Batches:
    """Step number to a batch; the same number always gives the same batch."""

    def __init__(self, pictures: list[Picture], views: np.ndarray, teacher: np.ndarray, seed: int):
        self.pictures, self.views, self.seed = pictures, views, seed
        self.weights = sampling_weights(pictures)
        names = sorted({picture.concept for picture in pictures})
        self.concept = {name: i for i, name in enumerate(names)}
        counts = Counter(word for picture in pictures for word in set(picture.words))
        words = sorted(word for word, count in counts.items() if count >= WORD_COUNT)
        self.word = {word: i for i, word in enumerate(words)}
        coloured = [i for i, picture in enumerate(pictures) if picture.coloured]
        self.teacher_row = {index: row for row, index in enumerate(coloured)}
        self.teacher = teacher
        self.same: dict[str, list[int]] = {}
        for index, picture in enumerate(pictures):
            self.same.setdefault(picture.concept, []).append(index)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """Pairs, one after the other: a drawing, and how somebody else drew the same, or it in lines."""
        start = (self.seed, step)
        first = np.random.default_rng(start).choice(len(self.pictures), BATCH // 2, p=self.weights)
        chosen, images = [], []
        for place, index in enumerate(first[rank::world]):
            # A generator for each pair: what is drawn does not depend on how many processes there are.
            random = np.random.default_rng((*start, rank + place * world))
            others = [other for other in self.same[self.pictures[index].concept] if other != index]
            second = others[random.integers(len(others))] if others and random.random() < 0.6 else index
            shown = (self.pictures[index].views[0], self.pictures[second].views[-1])
            chosen += [index, second]
            images += [drawings.augment(self.views[view], random) for view in shown]
        return self.goals(np.array(chosen)) | {"pixels": to_pixels(np.stack(images))}

    def goals(self, chosen: np.ndarray) -> dict[str, torch.Tensor]:
        """What there is to be told of the chosen drawings; a row of zeros where there is nothing."""
        words = torch.zeros(len(chosen), len(self.word))
        teacher = torch.zeros(len(chosen), self.teacher.shape[1])
        for i, index in enumerate(chosen):
            for word in self.pictures[index].words:
                if word in self.word:
                    words[i, self.word[word]] = 1
            if index in self.teacher_row:
                teacher[i] = torch.from_numpy(self.teacher[self.teacher_row[index]])
        return {
            "concepts": torch.tensor([self.concept[self.pictures[i].concept] for i in chosen]),
            "words": words / words.sum(1, keepdim=True).clamp(min=1),
            "teacher": teacher,
        }


def goal_losses(
    goals: Goals, pooled: torch.Tensor, batch: dict[str, torch.Tensor], paired: bool
) -> dict[str, torch.Tensor]:
    """The losses for pooled features [batch, width], means over the drawings that have the goal."""
    concepts, words, teacher, pairs = (values.float() for values in goals(pooled))
    taught = batch["teacher"].abs().sum(1) > 0
    with_words = batch["words"].sum(1) > 0
    losses = {
        "concepts": F.cross_entropy(concepts, batch["concepts"], label_smoothing=0.1),
        "words": -(batch["words"] * words.log_softmax(1)).sum(1)[with_words].mean(),
        "teacher": (1 - F.cosine_similarity(teacher[taught], batch["teacher"][taught], dim=1)).mean(),
    }
    return losses | ({"pairs": contrast(pairs, batch["concepts"])} if paired else {})


def contrast(shared: torch.Tensor, concepts: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """How well the partner of each row [batch, 128] is told from all rows of other concepts (InfoNCE)."""
    shared = F.normalize(shared, dim=1)
    place = torch.arange(len(shared))
    partner = place ^ 1
    alike = (concepts.unsqueeze(0) == concepts.unsqueeze(1)) & (place.unsqueeze(0) != partner.unsqueeze(1))
    return F.cross_entropy((shared @ shared.T / temperature).masked_fill(alike, -1e4), partner)


WEIGHTS = {"concepts": 0.3, "words": 0.2, "teacher": 4.0, "pairs": 1.0}


def weighted_sum(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The goals' losses as one number."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def optimizers(vision: Idefics3VisionTransformer, goals: Goals, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the encoder's matrices, AdamW for all else."""
    matrices = [p for p in vision.encoder.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in vision.parameters() if id(p) not in taken] + list(goals.parameters())
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.05, betas=(0.9, 0.98)),
    ]


def train(
    vision: Idefics3VisionTransformer,
    batches: Batches,
    iconbed: Path,
    cache: Path,
    steps: int,
    lr: float = 1.5e-3,
) -> Goals:
    """Run the stage in place, or go on from its checkpoint; returns the goals' heads."""
    rank, world = parallel.rank_and_world()
    checkpoint = cache / "vision.pt"
    torch.manual_seed(0)
    width = vision.post_layernorm.weight.shape[0]
    goals = Goals(width, len(batches.concept), len(batches.word), batches.teacher.shape[1])
    optims = optimizers(vision, goals, lr)
    parameters = [*vision.parameters(), *goals.parameters()]
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        vision.load_state_dict(state["vision"])
        goals.load_state_dict(state["goals"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        first = state["step"]
    yard = yardstick.read(iconbed)
    started = time.time()
    mean: dict[str, float] = {}
    ahead = ThreadPoolExecutor(1)
    upcoming = ahead.submit(batches, first, rank, world)
    for step in range(first, steps):
        # Warm up, stay, and fall to nothing over two thirds; all patches in the end, as at inference.
        now = lr * min((step + 1) / 150, 1, (steps - step) / steps * 1.5)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = now
        kept = KEPT_PATCHES if step < 0.6 * steps else None
        batch = upcoming.result()
        upcoming = ahead.submit(batches, step + 1, rank, world)
        # bfloat16 matrices are more than twice as fast on a processor that has them (AVX-512 BF16).
        with torch.autocast("cpu", torch.bfloat16):
            losses = goal_losses(goals, encode(vision, batch["pixels"], kept).mean(1), batch, paired=True)
        weighted_sum(losses).backward()
        parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        for name, loss in losses.items():
            mean[name] = 0.98 * mean.get(name, loss.item()) + 0.02 * loss.item()
        done = step + 1
        if rank:
            continue
        if done % 50 == 0:
            speed = (done - first) * BATCH / (time.time() - started)
            eta = (steps - done) * BATCH / speed / 60
            shown = " ".join(f"{name} {value:.3f}" for name, value in mean.items())
            print(f"vision {done}/{steps} {shown} lr {now:.1e} {speed:.0f} images/s eta {eta:.0f} min")
        if done % 250 == 0 or done == steps:
            scores = yardstick.probe(features(vision, to_pixels(yard.images)), yard)
            print(f"vision {done} probe " + yardstick.show(scores))
            state = {"vision": vision.state_dict(), "goals": goals.state_dict(), "step": done,
                     "optims": [optim.state_dict() for optim in optims]}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    ahead.shutdown(cancel_futures=True)
    return goals


@torch.inference_mode()
def features(vision: Idefics3VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """Pooled features [n, width] of pixels [n, 3, 96, 96]."""
    return torch.cat([encode(vision, part).mean(1) for part in pixels.split(128)])
