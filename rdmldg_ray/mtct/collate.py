"""From encoded images, labels and chains to a laid-out batch, ahead of the training step."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from ray.data.collate_fn import ArrowBatchCollateFn

from rdmldg_ray.chains.format import display_name
from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.config.schema import PathwayWeights
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.datasets.schema import QUESTION_SCHEMA
from rdmldg_ray.mtct.augment import augment_image
from rdmldg_ray.mtct.batching import BatchPlan
from rdmldg_ray.mtct.checks import check_images
from rdmldg_ray.mtct.loss import DIRECT, REASONING
from rdmldg_ray.mtct.shared_prefix import Branch, Layout, lay_out


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass."""

    ids: list[str]
    layout: Layout
    model_inputs: dict[str, torch.Tensor]


@dataclass(frozen=True)
class StepBatch:
    """One worker's share of one optimizer step."""

    step: int
    rank: int
    epoch: int
    micro_batches: list[MicroBatch]


class MtctCollator(ArrowBatchCollateFn):
    """Decode, augment, tokenize and lay out; Ray Data calls it in a thread ahead of the step."""

    def __init__(
        self,
        prompts: PathwayPrompts,
        weights: PathwayWeights,
        plan: BatchPlan,
        augment: str,
        seed: int,
        max_length: int,
        first_step: int = 0,
    ):
        self.prompts = prompts
        self.weights = weights
        self.plan = plan
        self.augment = augment
        self.seed = seed
        self.max_length = max_length
        self.first_step = first_step

    def __call__(self, batch: pa.Table) -> StepBatch:  # type: ignore[override]  # Ray allows any type
        """A batch of one row, as ``mtct.stream`` makes it."""
        step = batch["step"][0].as_py()
        if step < self.first_step:  # done before the stage was interrupted
            return StepBatch(step, batch["rank"][0].as_py(), batch["epoch"][0].as_py(), [])
        [row] = batch.to_pylist()
        check_images(step, row["id"], row["image"])
        whole = list(range(len(row["id"])))
        return StepBatch(
            step=row["step"],
            rank=row["rank"],
            epoch=row["epoch"],
            micro_batches=[self._micro_batch(row, part) for part in self.plan.micro_batches(whole)],
        )

    def _micro_batch(self, row: dict[str, Any], part: list[int]) -> MicroBatch:
        ids = [row["id"][i] for i in part]
        images = [self._image(row["id"][i], row["image"][i], row["epoch"]) for i in part]
        asked = [self.prompts.asking({n: row[n][i] for n in QUESTION_SCHEMA.names if n in row}) for i in part]
        encoded = self.prompts.encode(images, asked)
        branches = [
            pathway_branches(self.weights, row["label"][i], row["chain"][i], prompts)
            for i, prompts in zip(part, asked, strict=True)
        ]
        for sample_id, prefix, row_branches in zip(ids, encoded.prefixes, branches, strict=True):
            self._check_length(sample_id, len(prefix), row_branches)
        layout = lay_out(encoded.prefixes, branches, self.prompts.processor.tokenizer.pad_token_id)
        return MicroBatch(ids, layout, encoded.model_inputs)

    def _check_length(self, sample_id: str, prefix: int, branches: list[Branch]) -> None:
        length = prefix + answer_length(branches)
        if length > self.max_length:
            raise ValueError(
                f"{sample_id}: prompt and answer have {length} tokens, more than model.max_length "
                f"{self.max_length}; raise it, or leave out the chain"
            )

    def _image(self, sample_id: str, data: bytes, epoch: int) -> Image.Image:
        image = decode_image(sample_id, data)
        if self.augment == "none":
            return image
        # Seeded by sample and epoch: a resumed stage sees the images that it would have seen.
        rng = np.random.default_rng([self.seed, epoch, zlib.crc32(sample_id.encode())])
        return augment_image(image, rng)


def pathway_branches(
    weights: PathwayWeights, label: str, chain: str | None, prompts: PathwayPrompts
) -> list[Branch]:
    """The pathways of one sample; one of weight zero, or a missing chain, is not laid out at all."""
    branches = []
    if weights.direct > 0:
        target = prompts.target_ids(display_name(label))
        branches.append(Branch(DIRECT, prompts.direct_tail, target))
    if weights.reasoning > 0 and chain is not None:
        target = prompts.target_ids(chain)
        branches.append(Branch(REASONING, prompts.reasoning_tail, target))
    return branches


def answer_length(branches: list[Branch]) -> int:
    """Tokens after the shared prefix of the longest pathway."""
    return max(len(branch.tail) + len(branch.target) for branch in branches)
