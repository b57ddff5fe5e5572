from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from rdmldg_ray.config.schema import TrainingConfig
from rdmldg_ray.mtct.batching import BatchPlan, answer_lengths

# samples, workers, epochs, batch, micro batch: even and uneven, one step and many.
PLANS = [
    (16, 1, 1, 16, 16),
    (690, 2, 4, 32, 16),
    (33, 2, 2, 32, 16),
    (100, 3, 2, 32, 5),
    (31, 2, 3, 128, 8),
    (257, 4, 1, 64, 4),
]


def make(num_samples, num_workers, epochs, batch_size, micro_batch_size, seed=0):
    training = TrainingConfig(epochs=epochs, batch_size=batch_size, micro_batch_size=micro_batch_size)
    return BatchPlan.make(num_samples, num_workers, training, seed)


def cut(plan, seed=0):
    """The plan's slices for samples of random lengths."""
    lengths = np.random.default_rng(seed).integers(50, 500, plan.num_samples)
    return list(plan.slices(lengths))


@pytest.mark.parametrize("numbers", PLANS)
def test_every_sample_is_seen_exactly_once_an_epoch(numbers):
    plan = make(*numbers)
    for epoch in range(plan.epochs):
        seen = Counter(p for s in cut(plan) if s.epoch == epoch for p in s.positions)
        assert seen == Counter(range(plan.num_samples))


@pytest.mark.parametrize("numbers", PLANS)
def test_every_worker_has_a_sample_in_every_forward_pass_and_no_more_than_it_may(numbers):
    plan = make(*numbers)
    for piece in cut(plan):
        micro_batches = plan.micro_batches(piece.positions)
        assert len(micro_batches) == plan.accumulation
        assert all(1 <= len(micro) <= plan.micro_batch_size for micro in micro_batches)
        assert [p for micro in micro_batches for p in micro] == piece.positions


@pytest.mark.parametrize("numbers", PLANS)
def test_slices_come_by_step_then_rank_and_have_the_announced_sizes(numbers):
    plan = make(*numbers)
    slices = cut(plan)
    assert [(s.step, s.rank) for s in slices] == [
        (step, rank) for step in range(plan.total_steps) for rank in range(plan.num_workers)
    ]
    for step in range(plan.total_steps):
        size = sum(len(s.positions) for s in slices if s.step == step)
        assert size == plan.step_size(step) <= plan.batch_size


@pytest.mark.parametrize("numbers", PLANS)
def test_steps_and_workers_differ_by_no_more_than_one_sample(numbers):
    plan = make(*numbers)
    steps = [plan.step_size(step) for step in range(plan.total_steps)]
    assert max(steps) - min(steps) <= 1
    for step in range(plan.total_steps):
        shares = [len(s.positions) for s in cut(plan) if s.step == step]
        assert max(shares) - min(shares) <= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    first = cut(make(100, 2, 3, 32, 16, seed=5))
    assert first == cut(make(100, 2, 3, 32, 16, seed=5))
    assert first != cut(make(100, 2, 3, 32, 16, seed=6))
    by_epoch = [[p for s in first if s.epoch == epoch for p in s.positions] for epoch in range(3)]
    assert by_epoch[0] != by_epoch[1] != by_epoch[2]


def test_a_step_has_the_same_samples_however_it_is_cut_and_however_long_they_are():
    def steps(slices):
        return {
            step: {p for s in slices if s.step == step for p in s.positions}
            for step in range(max(s.step for s in slices) + 1)
        }

    whole = steps(cut(make(100, 1, 3, 32, 32, seed=5)))
    assert len(whole) == 12
    assert whole == steps(cut(make(100, 2, 3, 32, 16, seed=5)))
    assert whole == steps(cut(make(100, 4, 3, 32, 2, seed=5)))
    assert whole == steps(cut(make(100, 2, 3, 32, 16, seed=5), seed=1))


@pytest.mark.parametrize("numbers", PLANS)
def test_what_is_left_of_a_plan_is_its_end(numbers):
    plan = make(*numbers)
    lengths = np.random.default_rng(0).integers(50, 500, plan.num_samples)
    slices = list(plan.slices(lengths))
    for first in range(plan.total_steps + 1):
        assert list(plan.slices(lengths, first)) == [s for s in slices if s.step >= first]


@pytest.mark.parametrize("numbers", PLANS)
def test_neighbours_in_length_run_at_the_same_time(numbers):
    plan = make(*numbers)
    lengths = np.random.default_rng(0).integers(50, 500, plan.num_samples)
    slices = list(plan.slices(lengths))
    for step in range(plan.total_steps):
        ranks = [plan.micro_batches(s.positions) for s in slices if s.step == step]
        in_turn = [p for at_once in zip(*ranks, strict=True) for micro in at_once for p in micro]
        assert lengths[in_turn].tolist() == sorted(lengths[in_turn])


def test_less_than_5_percent_is_padding_where_chains_differ_as_a_teachers_do():
    # About 430 tokens of prompt and a chain of about 290, in the paper's batches of 4 x 128.
    rng = np.random.default_rng(0)
    lengths = (430 + np.exp(rng.normal(np.log(290), 0.25, 4000))).astype(int)
    plan = make(4000, 4, 1, 128, 4)

    def padding(slices):
        micro_batches = [lengths[micro] for s in slices for micro in plan.micro_batches(s.positions)]
        return 1 - lengths.sum() / sum(len(micro) * micro.max() for micro in micro_batches)

    assert padding(plan.slices(lengths)) < 0.01
    characters = lengths * rng.normal(5, 0.2, 4000)  # which follow tokens only roughly
    assert padding(plan.slices(characters)) < 0.05 < padding(plan.slices(np.zeros(4000)))


def test_a_sample_is_as_long_as_its_label_and_its_chain():
    table = pa.table({"label": ["cat", "dog", "horse"], "chain": ["äöü", "", None]})
    assert answer_lengths(table).tolist() == [6, 3, 5]


def test_too_few_samples_are_refused_with_the_numbers_and_the_remedy():
    with pytest.raises(
        ValueError,
        match="3 training samples leave 3 for a step, and 4 workers with 1 forward passes each need 4; "
        "use fewer workers, a smaller batch_size, or more chains",
    ):
        make(3, 4, 1, 16, 16)
    with pytest.raises(ValueError, match="0 training samples leave 0"):
        make(0, 1, 1, 16, 16)


@pytest.mark.parametrize("num_samples", [7, 8, 9, 15, 16, 17, 24, 25])
def test_a_plan_that_is_accepted_leaves_nobody_empty(num_samples):
    for workers in (1, 2, 3):
        for micro in (1, 2, 4, 8):
            try:
                plan = make(num_samples, workers, 1, 8, micro)
            except ValueError:
                continue
            assert all(all(plan.micro_batches(s.positions)) for s in cut(plan))
