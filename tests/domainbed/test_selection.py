import pytest

from rdmldg_ray.domainbed.selection import (
    METHODS,
    Cell,
    Choice,
    SingleSource,
    choose,
    leave_one_domain_out,
    num_envs,
    oracle,
    select,
    select_single_source,
    training_domain,
)
from tests.helpers import sweep_records as made


def record(test_envs, step, *accuracies, **args):
    return made.record(test_envs, step, accuracies, **args)


def outcome(choice, test_env=0):
    return None if choice is None else (pytest.approx(choice.validation), choice.accuracy(test_env))


def test_training_domain_validation_takes_the_best_mean_of_the_sources_out_parts():
    records = [
        record([0], 0, (0.9, 0.9), (0.5, 0.6), (0.6, 0.8)),
        record([0], 300, (0.3, 0.4), (0.6, 0.7), (0.7, 0.9)),
        record([0], 600, (0.4, 0.4), (0.6, 0.6), (0.7, 0.9)),
    ]
    assert outcome(training_domain(records, 0)) == (0.8, 0.3)


def test_training_domain_validation_passes_over_runs_with_another_domain_held_out_too():
    records = [record([0, 1], 0, (0.9, 0.9), (1, 1), (1, 1)), record([0], 0, (0.1, 0.2), (0, 0.2), (0, 0.4))]
    assert outcome(training_domain(records, 0)) == (0.3, 0.1)


def test_of_equal_checkpoints_the_first_is_taken():
    records = [record([0], step, (step / 1000, 0.5), (0.5, 0.5)) for step in (300, 0, 600)]
    assert outcome(training_domain(records, 0)) == (0.5, 0.3)


def test_the_oracle_takes_the_last_checkpoint_however_good_an_earlier_one_was():
    records = [record([1], 600, (0, 0), (0.6, 0.5)), record([1], 0, (0, 0), (0.9, 0.9))]
    assert outcome(oracle(records, 1), 1) == (0.5, 0.6)


def test_leave_one_domain_out_scores_a_step_by_the_runs_that_held_each_source_out_too():
    records = [
        record([0], 0, (0.2, 0), (0, 0), (0, 0)),
        record([0, 1], 0, (0, 0), (0.5, 0), (0, 0)),
        record([0, 2], 0, (0, 0), (0, 0), (0.6, 0)),
        record([0], 300, (0.7, 0), (0, 0), (0, 0)),
        record([0, 1], 300, (0, 0), (0.8, 0), (0, 0)),
        record([2, 0], 300, (0, 0), (0, 0), (0.2, 0)),
    ]
    assert outcome(leave_one_domain_out(records, 0)) == (0.55, 0.2)


def test_leave_one_domain_out_passes_over_steps_at_which_a_run_is_missing():
    records = [record([0], 0, (0.2, 0), (0, 0), (0, 0)), record([0, 1], 0, (0, 0), (0.5, 0), (0, 0))]
    assert leave_one_domain_out(records, 0) is None


@pytest.mark.parametrize("method", METHODS.values())
def test_no_records_no_choice(method):
    assert method([], 0) is None
    assert choose([], 0, method) is None


def test_hyperparameters_are_chosen_by_their_best_checkpoint():
    records = [
        record([0], 0, (0.1, 0.5), (0, 0.6), hparams_seed=3),
        record([0], 0, (0.2, 0.9), (0, 0.7), hparams_seed=1),
        record([0], 300, (0.3, 0.6), (0, 0.4), hparams_seed=1),
    ]
    assert outcome(choose(records, 0, training_domain)) == (0.7, 0.2)
    assert outcome(choose(records, 0, oracle)) == (0.6, 0.3)


def test_of_equal_hyperparameters_the_largest_seed_is_taken():
    records = [record([0], 0, (seed / 10, 0.5), (0, 0.5), hparams_seed=seed) for seed in (2, 7, 5)]
    assert outcome(choose(records, 0, training_domain)) == (0.5, 0.7)


def test_data_sets_algorithms_and_trials_are_apart():
    records = made.sweep_records()
    chosen = select(records, training_domain)
    assert len(chosen) == 4 * (3 + 3 + 3 + 2)
    for cell, choice in chosen.items():
        args = choice.record["args"]
        assert args["test_envs"] == [cell.test_env]
        assert cell == Cell(args["dataset"], args["algorithm"], cell.test_env, args["trial_seed"])
    # Without pairs there is no cross-validation.
    assert {cell.algorithm for cell in select(records, leave_one_domain_out)} == {"ERM"}


def test_a_part_that_a_record_does_not_have_is_named():
    choice = Choice(0.5, record([0], 300, (0.1, 0.2)))
    with pytest.raises(ValueError, match="a record of step 300 has no 'env0_all_acc'"):
        choice.accuracy(0, "all")
    assert num_envs(choice.record) == 1


def test_a_single_source_is_validated_on_itself_and_its_best_checkpoint_taken():
    records = [
        record([0, 2], 0, (0.9, 0.9), (0, 0.5), (0.8, 0.9)),
        record([0, 2], 300, (0.2, 0.9), (0, 0.6), (0.4, 0.9)),
        record([0], 0, (0.9, 0.9), (0, 0.9), (0.9, 0.9)),
        record([0], 0, (0.9, 0.9), (0, 0.9)),  # of two environments one is always a single source
    ]
    [(cell, choice)] = select_single_source(records).items()
    assert cell == SingleSource("PACS", "ERM", 1, 0)
    assert choice.validation == 0.6
    assert (choice.accuracy(0), choice.accuracy(2)) == (0.2, 0.4)
