from collections import Counter

import pytest

from rdmldg_ray.config import TrainingConfig
from rdmldg_ray.mtct.schedule import BatchPlan

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


@pytest.mark.parametrize("numbers", PLANS)
def test_every_sample_is_seen_exactly_once_an_epoch(numbers):
    plan = make(*numbers)
    for epoch in range(plan.epochs):
        seen = Counter(p for s in plan.slices() if s.epoch == epoch for p in s.positions)
        assert seen == Counter(range(plan.num_samples))


@pytest.mark.parametrize("numbers", PLANS)
def test_every_worker_has_a_sample_in_every_forward_pass_and_no_more_than_it_may(numbers):
    plan = make(*numbers)
    for piece in plan.slices():
        micro_batches = plan.micro_batches(piece.positions)
        assert len(micro_batches) == plan.accumulation
        assert all(1 <= len(micro) <= plan.micro_batch_size for micro in micro_batches)
        assert [p for micro in micro_batches for p in micro] == piece.positions


@pytest.mark.parametrize("numbers", PLANS)
def test_slices_come_by_step_then_rank_and_have_the_announced_sizes(numbers):
    plan = make(*numbers)
    slices = list(plan.slices())
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
        shares = [len(s.positions) for s in plan.slices() if s.step == step]
        assert max(shares) - min(shares) <= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    first = list(make(100, 2, 3, 32, 16, seed=5).slices())
    assert first == list(make(100, 2, 3, 32, 16, seed=5).slices())
    assert first != list(make(100, 2, 3, 32, 16, seed=6).slices())
    by_epoch = [[p for s in first if s.epoch == epoch for p in s.positions] for epoch in range(3)]
    assert by_epoch[0] != by_epoch[1] != by_epoch[2]
    # However many workers share it, a step has the same samples.
    alone = list(make(100, 1, 3, 32, 16, seed=5).slices())
    for whole in alone:
        assert whole.positions == [p for s in first if s.step == whole.step for p in s.positions]


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
            assert all(all(plan.micro_batches(s.positions)) for s in plan.slices())
