import pytest

from rdmldg_ray.domainbed.folds import fold_domains, plan_folds

ENVIRONMENTS = ("art", "photo", "sketch", "Real World")


def test_each_domain_is_held_out_in_turn_for_all():
    assert plan_folds(["all"], ENVIRONMENTS) == list(ENVIRONMENTS)


def test_pairs_hold_every_two_domains_out_together_once():
    assert plan_folds(["pairs"], ENVIRONMENTS) == [
        "art+photo",
        "art+sketch",
        "art+Real World",
        "photo+sketch",
        "photo+Real World",
        "sketch+Real World",
    ]


def test_single_source_leaves_one_domain_to_train_on():
    folds = plan_folds(["single-source"], ENVIRONMENTS)
    left = [set(ENVIRONMENTS) - set(fold_domains(fold)) for fold in folds]
    assert left == [{"Real World"}, {"sketch"}, {"photo"}, {"art"}]


def test_a_fold_is_named_in_the_data_sets_order_and_planned_once():
    assert plan_folds(["sketch+art", "all", "art+sketch"], ENVIRONMENTS) == ["art+sketch", *ENVIRONMENTS]


def test_an_unknown_domain_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="no domain 'foto'; it has: art, photo, sketch, Real World"):
        plan_folds(["art+foto"], ENVIRONMENTS)


@pytest.mark.parametrize(("held_out", "domains"), [("art+photo", ("art", "photo")), ("pairs", ("a", "b"))])
def test_a_fold_without_a_source_is_refused(held_out, domains):
    with pytest.raises(ValueError, match="no domain left to train on"):
        plan_folds([held_out], domains)
