import dataclasses

import pytest
import torch
from torch.nn import functional

from rdmldg_ray.config.schema import PathwayWeights
from rdmldg_ray.mtct.loss import DIRECT, REASONING, pathway_losses
from rdmldg_ray.mtct.shared_prefix import Branch, additive_mask, lay_out

PREFIXES = [[10, 11, 12], [20, 21]]
BRANCHES = [
    [Branch(DIRECT, [30], [40, 41]), Branch(REASONING, [50, 51], [60])],
    [Branch(DIRECT, [31], [42]), Branch(REASONING, [50, 51], [61, 62])],
]


def test_the_branches_follow_the_prefix_and_their_positions_restart_at_its_end():
    layout = lay_out(PREFIXES, BRANCHES, pad_id=0)
    assert layout.input_ids.tolist() == [
        [10, 11, 12, 30, 40, 41, 50, 51, 60],
        [20, 21, 31, 42, 50, 51, 61, 62, 0],
    ]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 5], [0, 1, 2, 3, 2, 3, 4, 5, 0]]
    assert layout.segments.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2, 2, 2, -1]]


def test_the_token_before_a_target_token_predicts_it_and_nothing_else_does():
    layout = lay_out(PREFIXES, BRANCHES, pad_id=0)
    predicted = [
        {
            position: (target, pathway)
            for position, target, pathway in zip(layout.keep.tolist(), targets, pathways, strict=True)
            if target != -100
        }
        for targets, pathways in zip(layout.targets.tolist(), layout.target_pathway.tolist(), strict=True)
    ]
    assert predicted == [
        {3: (40, DIRECT), 4: (41, DIRECT), 7: (60, REASONING)},
        {2: (42, DIRECT), 5: (61, REASONING), 6: (62, REASONING)},
    ]
    assert layout.keep.tolist() == [2, 3, 4, 5, 6, 7]
    assert torch.equal(layout.target_pathway == -1, layout.targets == -100)


def test_a_query_sees_the_prefix_and_its_own_branch_up_to_itself():
    mask = additive_mask(torch.tensor([[0, 0, 1, 1, 2, 2, -1]]), torch.float32)
    assert mask.shape == (1, 1, 7, 7)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_hidden_has_the_least_value_of_the_dtype(dtype):
    mask = additive_mask(lay_out(PREFIXES, BRANCHES, 0).segments, dtype)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(dtype).min}


def test_a_branch_without_a_target_is_refused():
    with pytest.raises(AssertionError, match="a target"):
        lay_out([[1]], [[Branch(DIRECT, [2], [])]], 0)


# The layout against sequences of their own, on a real architecture with image, prompt and chain.


def mixed_rows(rows, png):
    """Images of several sizes and chains from three words to a hundred, so that every row is padded."""
    chains = [rows[0]["chain"], "a short chain", " ".join([rows[1]["chain"], rows[2]["chain"]])]
    sizes = [(96, 96), (160, 90), (40, 80)]
    return [
        {**row, "chain": chain, "image": png(size, seed)}
        for seed, (row, chain, size) in enumerate(zip(rows[:3], chains, sizes, strict=True))
    ]


def shared_losses(model, micro):
    layout = micro.layout
    logits = model(
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        attention_mask=additive_mask(layout.segments, torch.float32),
        logits_to_keep=layout.keep,
        use_cache=False,
        **micro.model_inputs,
    ).logits
    return pathway_losses(logits, layout.targets, layout.target_pathway, "sum")


def plain_nll(model, prompts, row, pathway_text, target_text):
    """-log p of each target token in a causal sequence of its own, through the processor alone."""
    from rdmldg_ray.datasets.images import decode_image

    image = decode_image(row["id"], row["image"])
    inputs = dict(prompts.processor(text=[pathway_text], images=[[image]], return_tensors="pt"))
    target = torch.tensor(prompts.target_ids(target_text))
    start = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], target[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logits = model(**inputs, use_cache=False).logits[0, start - 1 : -1]
    return functional.cross_entropy(logits, target, reduction="none")


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_difference(ours, theirs):
    assert ours.keys() == theirs.keys()
    ours, theirs = (torch.cat([g[name].flatten() for name in theirs]) for g in (ours, theirs))
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_loss_and_gradients_equal_those_of_two_plain_sequences_for_each_sample(
    load_random_base, prompts, collate, rows, png
):
    model = load_random_base()
    mixed = mixed_rows(rows, png)
    [micro] = collate(mixed).micro_batches
    assert (micro.layout.segments == -1).any(dim=1).sum() == 2, "two of the three rows are padded"
    ours = shared_losses(model, micro)

    direct = [
        plain_nll(model, prompts, row, prompts.direct_text, row["label"].replace("_", " ")).sum()
        for row in mixed
    ]
    reasoning = [plain_nll(model, prompts, row, prompts.reasoning_text, row["chain"]).mean() for row in mixed]
    torch.testing.assert_close(ours.direct, torch.stack(direct), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.reasoning, torch.stack(reasoning), rtol=1e-5, atol=0)

    shared = gradients(model, ours.weighted_sum(1.0, 0.5))
    plain = gradients(model, sum(direct) + 0.5 * sum(reasoning))
    assert relative_difference(shared, plain) < 1e-5
    for part in ("vision_model", "connector", "text_model"):
        assert max(g.abs().max() for name, g in plain.items() if part in name) > 1e-3, part


def test_a_branch_that_saw_the_other_would_have_another_loss(load_random_base, collate, rows):
    model = load_random_base()
    [micro] = collate(rows[:2]).micro_batches
    merged = dataclasses.replace(
        micro, layout=dataclasses.replace(micro.layout, segments=micro.layout.segments.clamp(max=1))
    )
    with torch.no_grad():
        right, leaking = shared_losses(model, micro), shared_losses(model, merged)
    torch.testing.assert_close(right.direct, leaking.direct)
    assert ((right.reasoning - leaking.reasoning).abs() > 1e-3).all()


def test_padding_and_neighbours_do_not_change_a_samples_loss(load_random_base, collate, rows, png):
    model = load_random_base()
    mixed = mixed_rows(rows, png)
    with torch.no_grad():
        [micro] = collate(mixed).micro_batches
        together = shared_losses(model, micro)
        for number, row in enumerate(mixed):
            [micro] = collate([row]).micro_batches
            alone = shared_losses(model, micro)
            torch.testing.assert_close(together.direct[number], alone.direct[0], rtol=1e-5, atol=0)
            torch.testing.assert_close(together.reasoning[number], alone.reasoning[0], rtol=1e-5, atol=0)


def test_loss_and_gradient_do_not_depend_on_how_the_batch_is_cut(load_random_base, collate, rows):
    model = load_random_base()

    def summed(micro_batch_size, pieces):
        batch = collate(rows, micro_batch_size)
        assert [len(micro.ids) for micro in batch.micro_batches] == pieces
        model.zero_grad()
        total = 0.0
        for micro in batch.micro_batches:
            loss = shared_losses(model, micro).weighted_sum(1.0, 1.0) / len(rows)
            loss.backward()
            total += loss.item()
        return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    loss, gradient = summed(16, [16])
    for micro_batch_size, pieces in ((8, [8, 8]), (5, [4, 4, 4, 4])):
        cut_loss, cut_gradient = summed(micro_batch_size, pieces)
        assert cut_loss == pytest.approx(loss, rel=1e-5)
        assert relative_difference(cut_gradient, gradient) < 1e-5


def test_one_pathway_alone_has_the_loss_it_has_beside_the_other(load_random_base, collate, rows):
    model = load_random_base()
    with torch.no_grad():
        both, direct, reasoning = (
            shared_losses(model, collate(rows[:3], weights=weights).micro_batches[0])
            for weights in (
                PathwayWeights(),
                PathwayWeights(direct=1, reasoning=0),
                PathwayWeights(direct=0, reasoning=1),
            )
        )
    torch.testing.assert_close(direct.direct, both.direct, rtol=1e-5, atol=0)
    torch.testing.assert_close(reasoning.reasoning, both.reasoning, rtol=1e-5, atol=0)
    assert not direct.reasoning.any() and not reasoning.direct.any()
