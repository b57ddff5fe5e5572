"""Which samples go to which worker in which step: a pure function of a few numbers.

Every sample is seen exactly once an epoch and every worker has an image in every forward pass.
Which samples a step has depends on the seed and the epoch alone, so a stage that is interrupted and
resumed gets the very batches that it would have had.

Samples of like length share a forward pass, so that little of it is padding. They are sorted by length
within their step only: a step stays a random part of the epoch, and its gradient what it would be
unsorted, whichever way it is cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.config.schema import TrainingConfig


@dataclass(frozen=True)
class Slice:
    """What one worker does in one optimizer step."""

    step: int
    rank: int
    epoch: int
    positions: list[int]
    """Positions of the samples in the training set."""


@dataclass(frozen=True)
class BatchPlan:
    """The batches of one stage of training.

    An epoch of n samples is cut into ``ceil(n / batch_size)`` steps of nearly equal size, rather
    than into full batches and a remainder: nothing is dropped and no step is tiny.
    """

    num_samples: int
    num_workers: int
    epochs: int
    batch_size: int
    micro_batch_size: int
    seed: int

    @classmethod
    def make(cls, num_samples: int, num_workers: int, training: TrainingConfig, seed: int) -> "BatchPlan":
        """Plan a stage.

        Raises:
            ValueError: when there are too few samples to give every worker one in every forward pass.
        """
        plan = cls(
            num_samples=num_samples,
            num_workers=num_workers,
            epochs=training.epochs,
            batch_size=training.batch_size,
            micro_batch_size=training.micro_batch_size,
            seed=seed,
        )
        smallest = num_samples // plan.steps_per_epoch
        needed = num_workers * plan.accumulation
        if smallest < needed:
            raise ValueError(
                f"{num_samples} training samples leave {smallest} for a step, and {num_workers} workers with "
                f"{plan.accumulation} forward passes each need {needed}; use fewer workers, a smaller "
                "batch_size, or more chains"
            )
        return plan

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return max(1, -(-self.num_samples // self.batch_size))

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the stage."""
        return self.epochs * self.steps_per_epoch

    @property
    def accumulation(self) -> int:
        """Forward passes of each worker in an optimizer step."""
        largest = -(-self.num_samples // self.steps_per_epoch)
        return max(1, -(-largest // (self.num_workers * self.micro_batch_size)))

    def step_size(self, step: int) -> int:
        """Samples in an optimizer step, over all workers."""
        within = step % self.steps_per_epoch
        share, extra = divmod(self.num_samples, self.steps_per_epoch)
        return share + (within < extra)

    def slices(self, lengths: np.ndarray, first_step: int = 0) -> Iterator[Slice]:
        """All slices from a step on, in order of step, then rank.

        Args:
            lengths: (num_samples,) how long each sample is, in any unit.
        """
        assert len(lengths) == self.num_samples
        for epoch in range(first_step // self.steps_per_epoch, self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
            for within, batch in enumerate(np.array_split(order, self.steps_per_epoch)):
                step = epoch * self.steps_per_epoch + within
                if step < first_step:
                    continue
                batch = batch[np.argsort(lengths[batch], kind="stable")]
                parts = np.array_split(batch, self.num_workers * self.accumulation)
                for rank in range(self.num_workers):
                    # Neighbours in length run at the same time, so that no worker waits for another.
                    mine = np.concatenate(parts[rank :: self.num_workers])
                    yield Slice(step, rank, epoch, mine.tolist())

    def micro_batches(self, samples: list[int]) -> list[list[int]]:
        """Cut a slice's samples into this worker's forward passes, none empty."""
        return [part.tolist() for part in np.array_split(np.array(samples), self.accumulation)]


def answer_lengths(training_set: pa.Table) -> np.ndarray:
    """(num_samples,) characters of label and chain, none where there is no chain.

    They stand for tokens: a tokenizer would have to be fetched to where the plan is made. The prompt
    is the same for all samples.
    """
    columns = (training_set["label"], training_set["chain"])
    lengths = (pc.fill_null(pc.utf8_length(column), 0) for column in columns)
    return sum(length.to_numpy().astype(np.int64) for length in lengths)
