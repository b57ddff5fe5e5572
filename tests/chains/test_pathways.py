from concurrent.futures import ThreadPoolExecutor

import pytest

from rdmldg_ray.chains.pathways import PathwayPrompts, render_prompt
from rdmldg_ray.datasets.images import decode_image

CLASS_LISTS = [["dog", "cat"], ["sea_animal", "Real World", "a"], ["x"], [f"class {n}" for n in range(65)]]


@pytest.mark.parametrize("class_names", CLASS_LISTS, ids=len)
def test_prefix_and_tail_are_the_tokens_of_each_prompt_by_itself(processor, png, class_names):
    prompts = PathwayPrompts(processor, class_names)
    images = [decode_image("a", png(size)) for size in ((96, 96), (200, 60), (31, 47))]
    encoded = prompts.encode(images)
    for image, prefix in zip(images, encoded.prefixes, strict=True):
        for text, tail in (
            (prompts.direct_text, prompts.direct_tail),
            (prompts.reasoning_text, prompts.reasoning_tail),
        ):
            alone = processor(text=[text], images=[[image]])["input_ids"][0]
            assert [*prefix, *tail] == list(alone)


def test_the_tails_part_at_their_first_token(prompts):
    assert prompts.direct_tail[0] != prompts.reasoning_tail[0]
    assert len(prompts.direct_tail) < len(prompts.reasoning_tail)


def test_the_prefix_has_the_image_and_the_options(prompts, processor, png, info):
    [prefix] = prompts.encode([decode_image("a", png())]).prefixes
    text = processor.tokenizer.decode(prefix)
    assert processor.image_token_id in prefix
    assert all(name.replace("_", " ") in text for name in info.classes)
    assert text.count("What type of object is in this photo?") == 1


def test_pixels_do_not_depend_on_neighbours(prompts, png):
    images = [decode_image("a", png(size, seed)) for seed, size in enumerate(((96, 96), (200, 60)))]
    together = prompts.encode(images).model_inputs
    assert "input_ids" not in together and "attention_mask" not in together
    for number, image in enumerate(images):
        alone = prompts.encode([image]).model_inputs
        assert together.keys() == alone.keys()
        for name in alone:
            assert together[name][number].equal(alone[name][0])


def test_a_prompt_is_one_user_turn_with_the_image_first(processor):
    text = render_prompt(processor, "What is it?")
    assert text.count(processor.image_token) == 1
    assert text.index(processor.image_token) < text.index("What is it?")
    assert text != render_prompt(processor, "What else?")


def test_an_answer_ends_with_the_end_of_the_turn_and_reads_back(prompts, processor, rows):
    for text in ("sea animal", rows[0]["chain"]):
        ids = prompts.target_ids(text)
        assert ids[-1] == processor.tokenizer.eos_token_id
        assert processor.tokenizer.decode(ids[:-1]) == text


def test_image_settings_reach_the_image_processor(processor, prompts, png):
    image = decode_image("a", png())
    other = PathwayPrompts(processor, ["a", "b"], {"do_normalize": False, "image_std": [1.0, 1.0, 1.0]})
    plain = prompts.encode([image]).model_inputs["pixel_values"]
    changed = other.encode([image]).model_inputs["pixel_values"]
    assert (plain.min() < -0.9, changed.min() >= 0) == (True, True)


def test_samples_with_questions_of_their_own_have_prompts_of_their_own_in_one_batch(prompts, processor, png):
    samples = [
        {"question": "Is it day?", "options": ["yes", "no"]},
        {"label": "bird"},
        {"question": "Two dogs run.", "options": ["entailment", "neutral", "contradiction"]},
        {"question": None, "options": None},
    ]
    asked = [prompts.asking(sample) for sample in samples]
    assert asked[1] is asked[3] is prompts
    images = [decode_image("a", png(size)) for size in ((96, 96), (200, 60), (31, 47), (96, 96))]
    prefixes = prompts.encode(images, asked).prefixes
    for sample, own, image, prefix in zip(samples, asked, images, prefixes, strict=True):
        assert prefix == own.encode([image]).prefixes[0]
        for text, tail in ((own.direct_text, own.direct_tail), (own.reasoning_text, own.reasoning_tail)):
            assert [*prefix, *tail] == list(processor(text=[text], images=[[image]])["input_ids"][0])
        if sample.get("question"):
            asks = f"{sample['question']} Choose from the following options: {', '.join(sample['options'])}."
            assert asks in own.direct_text and asks in own.reasoning_text


def test_threads_that_share_a_processor_do_not_disturb_each_other(prompts, png):
    images = [decode_image("a", png((48, 48), seed)) for seed in range(2)]
    options = [["yes", "no"], [f"class {number}" for number in range(40)]]
    samples = [{"question": "Is it round?", "options": each} for each in options]

    def collate(_):
        asked = [prompts.asking(sample) for sample in samples]
        answers = [prompts.target_ids(text) for text in ("yes", "class 3")]
        return prompts.encode(images, asked).prefixes, answers

    alone = collate(0)
    with ThreadPoolExecutor(4) as threads:
        assert all(found == alone for found in threads.map(collate, range(60)))
