import math

import pytest
import torch

from rdmldg_ray.mtct.loss import DIRECT, REASONING, PathwayLosses, pathway_losses

# Two samples over three words; the logits are logs of these probabilities.
P = [
    [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5], [0.2, 0.2, 0.6]],
    [[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.4, 0.1, 0.5], [0.9, 0.05, 0.05]],
]
TARGETS = [[0, 1, 2, 0], [1, -100, 0, -100]]
PATHWAYS = [[DIRECT, DIRECT, REASONING, REASONING], [DIRECT, -1, REASONING, -1]]


def losses(label_reduction="sum", scale=1.0):
    logits = torch.tensor(P, dtype=torch.float64).log().float() + scale
    return pathway_losses(logits, torch.tensor(TARGETS), torch.tensor(PATHWAYS), label_reduction)


def test_the_labels_loss_is_the_sum_over_its_tokens():
    torch.testing.assert_close(losses().direct, -torch.tensor([math.log(0.5 * 0.8), math.log(0.2)]))


def test_the_labels_loss_is_by_choice_the_mean_over_its_tokens():
    torch.testing.assert_close(losses("mean").direct, -torch.tensor([math.log(0.5 * 0.8) / 2, math.log(0.2)]))


@pytest.mark.parametrize("label_reduction", ["sum", "mean"])
def test_the_chains_loss_is_the_mean_over_its_own_tokens(label_reduction):
    expected = -torch.tensor([math.log(0.5 * 0.2) / 2, math.log(0.4)])
    torch.testing.assert_close(losses(label_reduction).reasoning, expected)


def test_the_weighted_sum_is_the_papers_objective_times_the_batch():
    ours = losses().weighted_sum(2.0, 0.5).item()
    direct = -math.log(0.5 * 0.8) - math.log(0.2)
    reasoning = -math.log(0.5 * 0.2) / 2 - math.log(0.4)
    assert ours == pytest.approx(2.0 * direct + 0.5 * reasoning, rel=1e-6)


def test_a_pathway_that_is_not_there_has_loss_zero_and_no_gradient():
    logits = torch.randn(1, 2, 5, requires_grad=True)
    result = pathway_losses(logits, torch.tensor([[1, 2]]), torch.full((1, 2), DIRECT), "sum")
    assert result.reasoning.tolist() == [0.0]
    result.reasoning.sum().backward()
    assert not logits.grad.any()


def test_positions_that_predict_nothing_get_no_gradient():
    logits = torch.tensor(P).log().requires_grad_()
    pathway_losses(logits, torch.tensor(TARGETS), torch.tensor(PATHWAYS), "sum").weighted_sum(1, 1).backward()
    assert torch.equal(logits.grad.abs().sum(dim=-1) > 0, torch.tensor(TARGETS) != -100)


def test_logits_of_half_precision_are_reduced_in_float32():
    logits = torch.tensor(P).log().bfloat16()
    result = pathway_losses(logits, torch.tensor(TARGETS), torch.tensor(PATHWAYS), "sum")
    assert result.direct.dtype == result.reasoning.dtype == torch.float32


def test_a_long_chain_weighs_as_much_as_a_short_one():
    logits = torch.tensor(P[0]).log()[:1].expand(2, 6, 3)
    targets = torch.tensor([[0] * 6, [0, *[-100] * 5]])
    pathway = torch.where(targets == -100, -1, REASONING)
    result = pathway_losses(logits, targets, pathway, "sum")
    assert isinstance(result, PathwayLosses)
    torch.testing.assert_close(result.reasoning, torch.full((2,), -math.log(0.5)))
