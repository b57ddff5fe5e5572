"""Which parameters of the tiny base are in which group of the optimizer."""

import pytest
import torch
from transformers import get_scheduler

from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import LoraConfig, ModelConfig, TrainingConfig
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import load_base, make_trainable
from rdmldg_ray.mtct.parameter_groups import parameter_groups

ALL = ["vision", "connector", "decoder"]
PREFIXES = {"vision": "model.vision_model.", "connector": "model.connector.", "decoder": "model.text_model."}


def part_of(name):
    name = name.removeprefix("base_model.model.")
    return next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), "decoder")


def grouped(lora, **rates):
    """Names of the trained parameters by learning rate, and by part."""
    family = family_of(TINY_BASE)
    model = make_trainable(load_base(TINY_BASE, ModelConfig(dtype="float32")), family, LoraConfig(**lora))
    training = TrainingConfig.model_validate({"learning_rate": 1e-3, "learning_rates": rates})
    groups = parameter_groups(model, family, training)
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {group["lr"]: [names[parameter] for parameter in group["params"]] for group in groups}
    return found, list(names.values())


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("parts", "rates", "expected"),
    [
        (ALL, {}, {1e-3: ALL}),
        (ALL, {"vision": 1e-4}, {1e-4: ["vision"], 1e-3: ["connector", "decoder"]}),
        (ALL, {"vision": 1e-4, "connector": 1e-4}, {1e-4: ["vision", "connector"], 1e-3: ["decoder"]}),
        (
            ALL,
            {"vision": 1e-4, "connector": 2e-4, "decoder": 3e-4},
            {1e-4: ["vision"], 2e-4: ["connector"], 3e-4: ["decoder"]},
        ),
        (["vision", "decoder"], {"decoder": 5e-4}, {1e-3: ["vision"], 5e-4: ["decoder"]}),
        (["decoder"], {"decoder": 1e-3}, {1e-3: ["decoder"]}),
    ],
)
def test_every_trained_parameter_is_in_the_group_of_its_part(enabled, parts, rates, expected):
    found, names = grouped({"enabled": enabled, "parts": parts}, **rates)
    assert found == {
        rate: [name for name in names if part_of(name) in of_rate] for rate, of_rate in expected.items()
    }
    assert sorted(name for group in found.values() for name in group) == sorted(names)


def test_an_output_layer_of_its_own_is_the_decoders(load_random_base, random_base):
    model, family = load_random_base(), family_of(random_base)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    trained = make_trainable(model, family, LoraConfig(enabled=False, parts=["vision", "decoder"]))
    training = TrainingConfig.model_validate({"learning_rates": {"decoder": 1e-5}})
    [group] = [g for g in parameter_groups(trained, family, training) if g["lr"] == 1e-5]
    assert any(parameter is model.lm_head.weight for parameter in group["params"])


def test_all_groups_follow_the_schedule():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1e-3, 1e-4)]
    optimizer = torch.optim.AdamW(groups, lr=5e-4)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=4)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([7.5e-4, 7.5e-5])


def test_a_rate_of_a_part_that_is_not_trained_is_refused():
    assert load_config("demo", ["mtct.learning_rates.vision=1e-4"]).mtct.rate_of("vision") == 1e-4
    with pytest.raises(
        ValueError, match=r"sarr\.training\.learning_rates\.connector is set, but lora\.parts"
    ):
        load_config("demo", ["lora.parts=[vision, decoder]", "sarr.training.learning_rates.connector=1e-4"])
