"""The vision stage: an encoder learns to see, before there is a decoder to speak.

Goals on augmented drawings: the teacher's features of the *clean* drawing (so that style does not
matter), pooled and place by place, the concept across all sets that draw it, its keywords, its class
word, and to find the drawing's partner in the batch (the same concept drawn by others, or the same
drawing in lines alone). A linear probe on IconBed, one domain held out at a time, is logged as a
yardstick.
"""

import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

from tools.tiny_base import classes, parallel, yardstick
from tools.tiny_base import pictures as drawings
from tools.tiny_base.model import PATCH
from tools.tiny_base.muon import Muon
from tools.tiny_base.pictures import Picture

BATCH = 128
STEADY, DROPPING = 0.5, 0.75  # shares of the time at the full learning rate, and with patches dropped
WORD_COUNT = 4  # a keyword must belong to this many drawings to be a goal
KEPT_PATCHES = 32  # of 64, for most of the training: most patches of a drawing are blank

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
    """The encoder's features to the goals."""

    def __init__(self, width: int, concepts: int, words: int, teacher: int, places: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.concepts = nn.Linear(width, concepts)
        self.words = nn.Linear(width, words)
        self.classes = nn.Linear(width, len(classes.CLASSES))
        self.teacher = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, teacher))
        self.places = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, places))
        self.pairs = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 128))


def encode(
    vision: Idefics3VisionTransformer, pixels: torch.Tensor, chosen: torch.Tensor | None = None
) -> torch.Tensor:
    """[batch, 3, 96, 96] to tokens [batch, patches, width]; of the ``chosen`` patches [batch, n] alone."""
    grid = pixels.shape[-1] // PATCH
    patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [batch, 3, grid, grid, 12, 12]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), grid * grid, -1)
    positions = vision.embeddings.position_embedding.weight
    if chosen is None:
        where = positions
    else:
        patches = patches.gather(1, chosen.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        where = positions[chosen]
    kernel = vision.embeddings.patch_embedding
    tokens = F.linear(patches, kernel.weight.flatten(1), kernel.bias) + where
    tokens = vision.encoder(inputs_embeds=tokens, attention_mask=None).last_hidden_state
    return vision.post_layernorm(tokens)


def choose(pixels: torch.Tensor, kept: int) -> torch.Tensor:
    """The patches with the most ink, with some chance: [batch, kept] of pixels [batch, 3, 96, 96]."""
    ink = F.avg_pool2d((1 - pixels).mean(1, keepdim=True), PATCH).flatten(1)
    return (ink + 0.1 * torch.rand_like(ink)).topk(kept, dim=1).indices


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [batch, 96, 96, 3] to float [batch, 3, 96, 96] in -1..1, as the image processor does."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def taught(pictures: list[Picture]) -> list[int]:
    """The pictures that the teacher sees: coloured ones, of things that have a Unicode group or a class."""
    return [i for i, picture in enumerate(pictures) if picture.coloured and (picture.group or picture.label)]


def sampling_weights(pictures: list[Picture]) -> np.ndarray:
    """How often each drawing is shown, summing to 1: things more than signs, colours more than lines."""
    weights = []
    for picture in pictures:
        weight = 1.0 if picture.coloured else 0.4
        if picture.group.startswith(_COMMON):
            weight *= 0.4
        elif picture.iconbed:
            weight *= 5.0
        elif picture.label in classes.ICONBED:
            weight *= 3.0
        elif not (picture.group or picture.label):
            weight *= 0.15
        weights.append(weight)
    # Sets have ten times as many tools as birds; the twelve classes are shown nearly equally often.
    share: dict[str, float] = defaultdict(float, dict.fromkeys(classes.ICONBED, 1e-9))
    for picture, weight in zip(pictures, weights, strict=True):
        share[picture.label] += weight
    mean = sum(share[name] for name in classes.ICONBED) / len(classes.ICONBED)
    for index, picture in enumerate(pictures):
        if picture.label in classes.ICONBED:
            weights[index] *= (mean / share[picture.label]) ** 0.8
    return np.array(weights) / sum(weights)


class Batches:
    """Step number to a batch; the same number always gives the same batch."""

    def __init__(
        self,
        pictures: list[Picture],
        views: np.ndarray,
        teacher: tuple[np.ndarray, np.ndarray],
        seed: int,
    ):
        self.pictures, self.views, self.seed = pictures, views, seed
        self.weights = sampling_weights(pictures)
        names = sorted({picture.concept for picture in pictures})
        self.concept = {name: i for i, name in enumerate(names)}
        counts = Counter(word for picture in pictures for word in set(picture.words))
        words = sorted(word for word, count in counts.items() if count >= WORD_COUNT)
        self.word = {word: i for i, word in enumerate(words)}
        self.teacher, self.places = teacher
        shown = taught(pictures) if len(self.teacher) else []
        self.teacher_row = {index: row for row, index in enumerate(shown)}
        self.label = {name: i for i, name in enumerate(classes.CLASSES)}
        self.same: dict[str, list[int]] = {}
        for index, picture in enumerate(pictures):
            self.same.setdefault(picture.concept, []).append(index)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """Pairs, one after the other: a drawing, and how somebody else drew the same, or it in lines."""
        start = (self.seed, step)
        first = np.random.default_rng(start).choice(len(self.pictures), BATCH // 2, p=self.weights)
        chosen, images, maps = [], [], []
        for place, index in enumerate(first[rank::world]):
            # A generator for each pair: what is drawn does not depend on how many processes there are.
            random = np.random.default_rng((*start, rank + place * world))
            others = [other for other in self.same[self.pictures[index].concept] if other != index]
            second = others[random.integers(len(others))] if others and random.random() < 0.6 else index
            shown = (self.pictures[index].views[0], self.pictures[second].views[-1])
            chosen += [index, second]
            for view in shown:
                image, back = drawings.augment_with_map(self.views[view], random)
                images.append(image)
                maps.append(back)
        return self.goals(np.array(chosen), np.stack(maps)) | {"pixels": to_pixels(np.stack(images))}

    def goals(self, chosen: np.ndarray, maps: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        """What there is to be told of the chosen drawings; a row of zeros where there is nothing.

        ``maps`` [batch, 2, 3] (see `augment_with_map`) adds the teacher's features at the places that
        the patches now show: [batch, 64, 128].
        """
        words = torch.zeros(len(chosen), len(self.word))
        teacher = torch.zeros(len(chosen), self.teacher.shape[1])
        places = torch.zeros(len(chosen), *self.places.shape[1:])
        for i, index in enumerate(chosen):
            for word in self.pictures[index].words:
                if word in self.word:
                    words[i, self.word[word]] = 1
            if index in self.teacher_row:
                row = self.teacher_row[index]
                teacher[i] = torch.from_numpy(self.teacher[row].astype(np.float32))
                if maps is not None:
                    places[i] = torch.from_numpy(self.places[row].astype(np.float32))
        told = {
            "concepts": torch.tensor([self.concept[self.pictures[i].concept] for i in chosen]),
            "classes": torch.tensor([self.label.get(self.pictures[i].label, -100) for i in chosen]),
            "words": words / words.sum(1, keepdim=True).clamp(min=1),
            "teacher": teacher,
        }
        return told if maps is None else told | {"places": at_patches(places, maps)}


def at_patches(places: torch.Tensor, maps: np.ndarray) -> torch.Tensor:
    """Features [batch, 128, 8, 8] of a drawing at the patches of its augmented image: [batch, 64, 128]."""
    grid = drawings.SIZE // PATCH
    centres = (torch.arange(grid) + 0.5) * PATCH - 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # [3, 64]
    source = torch.from_numpy(maps) @ points  # [batch, 2, 64], pixels
    where = ((source + 0.5) * 2 / drawings.SIZE - 1).transpose(1, 2).unsqueeze(1)
    found = F.grid_sample(places, where, padding_mode="border", align_corners=False)
    return found.squeeze(2).transpose(1, 2)


def goal_losses(
    goals: Goals,
    tokens: torch.Tensor,
    batch: dict[str, torch.Tensor],
    chosen: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The losses for tokens [batch, patches, width], means over the drawings that have the goal.

    ``chosen`` [batch, patches]: which patches the tokens are of, if not all.
    """
    pooled = goals.norm(tokens.mean(1))
    words = goals.words(pooled).float()
    taught = batch["teacher"].abs().sum(1) > 0
    with_words = batch["words"].sum(1) > 0
    losses = {
        "concepts": F.cross_entropy(goals.concepts(pooled).float(), batch["concepts"], label_smoothing=0.1),
        "classes": F.cross_entropy(goals.classes(pooled).float(), batch["classes"]),
        "words": -(batch["words"] * words.log_softmax(1)).sum(1)[with_words].mean(),
    }
    if taught.any():
        found = goals.teacher(pooled[taught]).float()
        losses["teacher"] = (1 - F.cosine_similarity(found, batch["teacher"][taught], dim=1)).mean()
    if "places" not in batch:
        return losses
    losses["pairs"] = contrast(goals.pairs(pooled).float(), batch["concepts"])
    if taught.any():
        aim = batch["places"]
        if chosen is not None:
            aim = aim.gather(1, chosen.unsqueeze(-1).expand(-1, -1, aim.shape[-1]))
        found = goals.places(tokens[taught]).float()
        losses["places"] = (1 - F.cosine_similarity(found, aim[taught], dim=2)).mean()
    return losses


def contrast(shared: torch.Tensor, concepts: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """How well the partner of each row [batch, 128] is told from all rows of other concepts (InfoNCE)."""
    shared = F.normalize(shared, dim=1)
    place = torch.arange(len(shared))
    partner = place ^ 1
    alike = (concepts.unsqueeze(0) == concepts.unsqueeze(1)) & (place.unsqueeze(0) != partner.unsqueeze(1))
    return F.cross_entropy((shared @ shared.T / temperature).masked_fill(alike, -1e4), partner)


WEIGHTS = {"concepts": 0.4, "classes": 1.0, "words": 0.2, "teacher": 3.0, "places": 2.0, "pairs": 1.0}


def weighted_sum(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The goals' losses as one number."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def optimizers(vision: Idefics3VisionTransformer, goals: Goals, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the encoder's matrices, AdamW for all else."""
    matrices = [p for p in vision.encoder.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in vision.parameters() if id(p) not in taken] + list(goals.parameters())
    return [
        Muon(matrices, lr=lr, weight_decay=0.05),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.05, betas=(0.9, 0.98)),
    ]


def train(
    vision: Idefics3VisionTransformer,
    batches: Batches,
    iconbed: Path,
    cache: Path,
    steps: int,
    lr: float = 2e-3,
) -> Goals:
    """Run the stage in place, or resume it from its checkpoint; returns the goals' heads."""
    rank, world = parallel.rank_and_world()
    checkpoint = cache / "vision.pt"
    torch.manual_seed(0)
    width = vision.post_layernorm.weight.shape[0]
    sizes = (len(batches.concept), len(batches.word), batches.teacher.shape[1], batches.places.shape[1])
    goals = Goals(width, *sizes)
    optims = optimizers(vision, goals, lr)
    parameters = [*vision.parameters(), *goals.parameters()]
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        vision.load_state_dict(state["vision"])
        goals.load_state_dict(state["goals"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        step = state["step"]
    yard = yardstick.read(iconbed)
    started, saved_at, first = time.time(), time.time(), step
    mean: dict[str, float] = {}
    ahead = ThreadPoolExecutor(1)
    upcoming = ahead.submit(batches, step, rank, world)
    while step < steps:
        progress = step / steps
        # Warm up, stay, and fall to nothing; all patches in the end, as at inference.
        now = lr * min((step + 1) / 150, 1, max(1 - progress, 0.01) / (1 - STEADY))
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = now
        batch = upcoming.result()
        upcoming = ahead.submit(batches, step + 1, rank, world)
        chosen = choose(batch["pixels"], KEPT_PATCHES) if progress < DROPPING else None
        with parallel.mixed_precision():
            losses = goal_losses(goals, encode(vision, batch["pixels"], chosen), batch, chosen)
        weighted_sum(losses).backward()
        parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        for name, loss in losses.items():
            mean[name] = 0.98 * mean.get(name, loss.item()) + 0.02 * loss.item()
        step += 1
        if rank:
            continue
        if step % 50 == 0:
            speed = (step - first) * BATCH / (time.time() - started)
            shown = " ".join(f"{name} {value:.3f}" for name, value in mean.items())
            print(f"vision {step}/{steps} {shown} lr {now:.1e} {speed:.0f} images/s", flush=True)
        if step % 250 == 0:
            scores = yardstick.probe(features(vision, to_pixels(yard.images)), yard)
            print(f"vision {step} probe " + yardstick.show(scores), flush=True)
        if time.time() - saved_at > 300:
            saved_at = time.time()
            _save(checkpoint, vision, goals, optims, step)
    if rank == 0 and step > first:
        _save(checkpoint, vision, goals, optims, step)
        scores = yardstick.probe(features(vision, to_pixels(yard.images)), yard)
        print(f"vision {step}, the end, probe " + yardstick.show(scores), flush=True)
    ahead.shutdown(cancel_futures=True)
    return goals


def _save(
    checkpoint: Path,
    vision: Idefics3VisionTransformer,
    goals: Goals,
    optims: list[torch.optim.Optimizer],
    step: int,
) -> None:
    state = {"vision": vision.state_dict(), "goals": goals.state_dict(), "step": step,
             "optims": [optim.state_dict() for optim in optims]}  # fmt: skip
    torch.save(state, checkpoint.with_suffix(".part"))
    checkpoint.with_suffix(".part").replace(checkpoint)


@torch.inference_mode()
def features(vision: Idefics3VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """Pooled features [n, width] of pixels [n, 3, 96, 96]."""
    return torch.cat([encode(vision, part).mean(1) for part in pixels.split(128)])
