import pytest
import torch

from rdmldg_ray.config.schema import PathwayWeights
from rdmldg_ray.mtct.loss import DIRECT, REASONING, pathway_losses

PIXELS = "pixel_values"


def test_micro_batches_keep_the_rows_order(collate, rows):
    batch = collate(rows, micro_batch_size=5)
    assert [sample_id for micro in batch.micro_batches for sample_id in micro.ids] == [r["id"] for r in rows]
    assert (batch.step, batch.rank, batch.epoch) == (0, 0, 0)
    for micro in batch.micro_batches:
        assert len(micro.ids) == len(micro.layout.input_ids) == len(micro.model_inputs[PIXELS])


def test_targets_are_label_and_chain_each_with_the_end_of_the_turn(collate, rows, processor):
    [micro] = collate(rows).micro_batches
    layout, tokenizer = micro.layout, processor.tokenizer
    for number, row in enumerate(rows):
        for pathway, text in ((DIRECT, row["label"].replace("_", " ")), (REASONING, row["chain"])):
            target = layout.targets[number][layout.target_pathway[number] == pathway].tolist()
            assert target[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(target[:-1]) == text
            assert tokenizer.eos_token_id not in target[:-1]


def test_a_pathway_of_weight_zero_is_not_laid_out(collate, rows):
    [both] = collate(rows[:2]).micro_batches
    [direct] = collate(rows[:2], weights=PathwayWeights(direct=1, reasoning=0)).micro_batches
    [reasoning] = collate(rows[:2], weights=PathwayWeights(direct=0, reasoning=1)).micro_batches
    assert REASONING not in direct.layout.target_pathway and DIRECT in direct.layout.target_pathway
    assert DIRECT not in reasoning.layout.target_pathway and REASONING in reasoning.layout.target_pathway
    assert both.layout.segments.max() == 2
    assert direct.layout.segments.max() == reasoning.layout.segments.max() == 1
    assert direct.layout.input_ids.shape[1] < reasoning.layout.input_ids.shape[1]


def test_a_sample_without_a_chain_has_its_label_alone_and_a_reasoning_loss_of_zero(collate, rows):
    [micro] = collate([{**rows[0], "chain": None}, rows[1]]).micro_batches
    layout = micro.layout
    assert [REASONING in row for row in layout.target_pathway] == [False, True]
    assert all(DIRECT in row for row in layout.target_pathway)
    logits = torch.randn(*layout.targets.shape, int(layout.targets.max()) + 1)
    losses = pathway_losses(logits, layout.targets, layout.target_pathway, "sum")
    assert losses.reasoning[0] == 0 and losses.reasoning[1] > 0
    # The mean over the batch still counts it: the other sample's weight does not grow.
    assert losses.weighted_sum(1, 1) == pytest.approx(float(losses.direct.sum() + losses.reasoning[1]))


def test_padding_is_the_tokenizers_and_stands_at_the_end(collate, rows, processor):
    [micro] = collate(rows).micro_batches
    padding = micro.layout.segments == -1
    assert padding.any()
    assert set(micro.layout.input_ids[padding].tolist()) == {processor.tokenizer.pad_token_id}
    assert torch.equal(padding.int().sort(dim=1).values, padding.int())


def pixels(batch):
    return torch.cat([micro.model_inputs[PIXELS] for micro in batch.micro_batches])


def test_augmentation_depends_on_seed_epoch_and_id_alone(collate, rows):
    first = pixels(collate(rows[:4], augment="domainbed", seed=3, epoch=1))
    assert torch.equal(first, pixels(collate(rows[:4], augment="domainbed", seed=3, epoch=1)))
    # Neither the place in the batch nor the cut into forward passes matters.
    turned = collate(rows[3::-1], micro_batch_size=1, augment="domainbed", seed=3, epoch=1)
    assert torch.equal(first.flip(0), pixels(turned))
    for other in (
        collate(rows[:4], augment="domainbed", seed=4, epoch=1),
        collate(rows[:4], augment="domainbed", seed=3, epoch=2),
        collate([{**row, "id": row["id"] + "'"} for row in rows[:4]], augment="domainbed", seed=3, epoch=1),
        collate(rows[:4], augment="none", seed=3, epoch=1),
    ):
        different = (first != pixels(other)).flatten(1).any(dim=1)
        assert different.all()


def test_without_augmentation_an_image_is_the_same_in_every_epoch(collate, rows):
    assert torch.equal(pixels(collate(rows[:4], seed=1)), pixels(collate(rows[:4], seed=2, epoch=3)))


def test_a_sequence_beyond_the_models_length_names_the_setting(collate, rows):
    message = rf"{rows[0]['id']}: prompt and answer have \d+ .*model\.max_length 40; "
    with pytest.raises(ValueError, match=message):
        collate(rows[:2], max_length=40)


def test_an_image_that_does_not_decode_names_its_sample(collate, rows):
    with pytest.raises(ValueError, match=r"^a/broken\.png: the image does not decode"):
        collate([rows[0], {**rows[1], "id": "a/broken.png", "image": b"no image"}])


def test_a_batch_without_images_names_step_and_samples(collate, rows):
    with pytest.raises(ValueError, match=r"^step 2: 1 of 2 samples have no image: a/empty\.png; "):
        collate([rows[0], {**rows[1], "id": "a/empty.png", "image": None}], epoch=2)


def test_rows_with_questions_of_their_own_are_laid_out_as_each_by_itself(collate, rows, processor):
    asked = [
        {**rows[0], "question": "Is it day?", "options": ["yes", "no"], "label": "no"},
        {**rows[1], "question": "What is it?", "options": ["sea_animal", "a very long cat"]},
    ]
    [both] = collate(asked).micro_batches
    for number, row in enumerate(asked):
        [alone] = collate([row]).micro_batches
        length = alone.layout.input_ids.shape[1]
        for name in ("input_ids", "position_ids", "segments"):
            assert torch.equal(getattr(both.layout, name)[number][:length], getattr(alone.layout, name)[0])
        text = processor.tokenizer.decode(alone.layout.input_ids[0])
        shown = ", ".join(option.replace("_", " ") for option in row["options"])
        assert text.count(f"{row['question']} Choose from the following options: {shown}.") == 1
        target = alone.layout.targets[0][alone.layout.target_pathway[0] == DIRECT].tolist()
        assert processor.tokenizer.decode(target[:-1]) == row["label"].replace("_", " ")
