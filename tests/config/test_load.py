import pytest
import yaml
from pydantic import BaseModel

from rdmldg_ray.config.load import RECIPES, ConfigError, dump_config, load_config, parse_config, recipe_names
from rdmldg_ray.config.schema import Config


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and give its path."""

    def recipe(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return recipe


def mistakes(name, *overrides):
    with pytest.raises(ConfigError) as error:
        load_config(name, list(overrides))
    return str(error.value)


def test_every_shipped_file_is_a_recipe_of_its_own_name():
    assert recipe_names() == sorted(path.stem for path in RECIPES.iterdir())
    assert {"demo", "iconbed"} <= set(recipe_names())
    for name in recipe_names():
        assert load_config(name).name == name


@pytest.mark.parametrize("name", recipe_names())
def test_a_dumped_config_loads_as_an_equal_one(name, recipe):
    config = load_config(name)
    assert load_config(recipe(dump_config(config))) == config


def test_the_defaults_are_the_papers():
    config = Config()
    assert (config.lora.rank, config.lora.parts) == (8, ["vision", "decoder"])
    for stage in (config.mtct, config.sarr.training):
        assert (stage.learning_rate, stage.batch_size, stage.epochs) == (5e-4, 128, 3)
    assert (config.mtct.weights.direct, config.mtct.weights.reasoning, config.sarr.rounds) == (1, 1, 3)
    assert config.mtct.label_reduction == "sum"
    assert config.sarr.filter.max_tokens is config.sarr.filter.min_logprob is None


def test_an_empty_recipe_has_all_defaults(recipe):
    assert load_config(recipe("")) == Config()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("sarr.rounds=2", "sarr.rounds", 2),
        ("mtct.learning_rate=1e-3", "mtct.learning_rate", 1e-3),
        ("mtct.learning_rate=2.5E-4", "mtct.learning_rate", 2.5e-4),
        ("sarr.filter.min_logprob=-1e-1", "sarr.filter.min_logprob", -0.1),
        ("sarr.filter.max_tokens=80", "sarr.filter.max_tokens", 80),
        ("sarr.filter.max_tokens=null", "sarr.filter.max_tokens", None),
        ("data.held_out=[flat, paint]", "data.held_out", ["flat", "paint"]),
        ("data.held_out=flat,paint", "data.held_out", ["flat", "paint"]),
        ("data.held_out=Real World, Art", "data.held_out", ["Real World", "Art"]),
        ("data.held_out=sketch", "data.held_out", ["sketch"]),
        ("sarr.temperatures=[0.5, 1]", "sarr.temperatures", [0.5, 1.0]),
        ("sarr.temperatures=0.5,1e0", "sarr.temperatures", [0.5, 1.0]),
        ("name=1e5", "name", "1e5"),
        ("name=010", "name", "010"),
        ("data.held_out=no", "data.held_out", ["no"]),
        (
            "data.held_out=[010, 1.10, true, 2024-05-01]",
            "data.held_out",
            ["010", "1.10", "true", "2024-05-01"],
        ),
        ("data.held_out=1e5", "data.held_out", ["1e5"]),
        ("data.dataset=2024", "data.dataset", "2024"),
        ("evaluation.zero_shot=false", "evaluation.zero_shot", False),
        ("storage=s3://bucket/some prefix", "storage", "s3://bucket/some prefix"),
        ("mtct.weights={direct: 2, reasoning: 0.5}", "mtct.weights.direct", 2.0),
    ],
)
def test_an_override_sets_its_key(override, path, value):
    config = load_config("demo", [override])
    for part in path.split("."):
        config = getattr(config, part)
    assert config == value


def test_later_overrides_win_and_leave_the_rest_as_the_recipe_has_it():
    config = load_config("demo", ["mtct.epochs=7", "mtct.epochs=9"])
    recipe = load_config("demo")
    assert config.mtct == recipe.mtct.model_copy(update={"epochs": 9})
    assert config.data == recipe.data


def test_a_recipe_may_write_numbers_as_an_override_does(recipe):
    assert load_config(recipe("mtct: {learning_rate: 1e-3}")).mtct.learning_rate == 1e-3


def test_an_override_makes_sections_that_the_recipe_left_out(recipe):
    assert load_config(recipe("name: x"), ["sarr.filter.max_tokens=5"]).sarr.filter.max_tokens == 5


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("mtct.learnig_rate=1", "mtct.learnig_rate: unknown key; did you mean 'learning_rate'?"),
        ("sar.rounds=1", "sar: unknown key; did you mean 'sarr'?"),
        ("sarr.filter.max_token=1", "sarr.filter.max_token: unknown key; did you mean 'max_tokens'?"),
        ("sarr.training.epoch=1", "sarr.training.epoch: unknown key; did you mean 'epochs'?"),
        ("mtct.weights.zzz=1", "mtct.weights.zzz: unknown key; there are: direct, reasoning"),
    ],
)
def test_an_unknown_key_is_named_by_its_path_with_the_nearest_name(override, line):
    assert f"  {line}" in mistakes("demo", override).splitlines()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=99999999999999999999", "seed is 99999999999999999999"),
        ("mtct.epochs=2147483648", "epochs is 2147483648"),
        ("data.trial_seed=1" + "0" * 400, "trial_seed is 1000"),
        ("lora.rank=99999999999999999999", "rank is 99999999999999999999"),
        ("sarr.rounds=99999999999999999999", "sarr.rounds: Input should be less than or equal to 1000"),
    ],
)
def test_a_number_that_nothing_could_count_to_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("demo", [override])


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("mtct.epochs=many", "mtct.epochs"),
        ("mtct.epochs=0", "mtct.epochs"),
        ("mtct.epochs=1.5", "mtct.epochs"),
        ("mtct.epochs=yes", "mtct.epochs"),
        ("mtct.epochs=2024-05-01", "mtct.epochs"),
        ("mtct.learning_rate=-1", "mtct.learning_rate"),
        ("mtct.learning_rate=.inf", "mtct.learning_rate"),
        ("mtct.weights.direct=.nan", "mtct.weights.direct"),
        ("sarr.filter.min_logprob=-.inf", "sarr.filter.min_logprob"),
        ("data.holdout_fraction=1", "data.holdout_fraction"),
        ("data.augment=some", "data.augment"),
        ("model.mixed_precision=maybe", "model.mixed_precision"),
        ("data.held_out=[]", "data.held_out"),
        ("lora.parts=[vision, head]", "lora.parts.1"),
        ("sarr.temperatures=[1, hot]", "sarr.temperatures.1"),
        ("sarr.filter.min_logprob=0.5", "sarr.filter.min_logprob"),
        ("workers.zero_stage=4", "workers.zero_stage"),
        ("name=a/b", "name"),
        ("evaluation.pathways=[direct, both]", "evaluation.pathways.1"),
    ],
)
def test_a_wrong_value_is_named_by_its_path_and_shown(override, path):
    [_, line] = mistakes("demo", override).splitlines()
    assert line.startswith(f"  {path}: ") and "(given: " in line


def test_every_mistake_has_a_line():
    message = mistakes("demo", "mtct.epochs=0", "mtct.epcohs=1", "lora.rank=x")
    assert message.startswith("recipe 'demo' is not valid:\n")
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "lora.rank",
        "mtct.epochs",
        "mtct.epcohs",
    ]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["mtct.micro_batch_size=64"], "mtct: micro_batch_size 64 is larger than batch_size 16"),
        (
            ["sarr.training.micro_batch_size=64"],
            "sarr.training: micro_batch_size 64 is larger than batch_size 16",
        ),
        (
            ["mtct.weights.direct=0", "mtct.weights.reasoning=0"],
            "mtct: weights.direct and weights.reasoning are both 0: nothing to train on",
        ),
        (
            ["sarr.max_attempts=1", "sarr.temperatures=[1, 1]"],
            "sarr: temperatures lists 2 attempts, max_attempts allows 1",
        ),
        (
            ["sarr.temperatures=0"],
            "sarr: temperature 0 writes the same chain at every attempt; set max_attempts to 1",
        ),
        (
            ["sarr.temperatures=[0]"],
            "sarr: temperature 0 writes the same chain at every attempt; set max_attempts to 1",
        ),
        (
            ["mtct.weights.reasoning=0"],
            "(whole recipe): sarr.rounds needs the reasoning pathway, but mtct.weights.reasoning is 0; "
            "set sarr.rounds=0 for labels only",
        ),
        (["model.dtype=bfloat16"], "model: mixed_precision needs dtype float32, not bfloat16"),
        (
            ["sarr.filter.min_tokens=9", "sarr.filter.max_tokens=8"],
            "sarr.filter: min_tokens 9 is larger than max_tokens 8",
        ),
        (
            ["sarr.without_chain=labels", "mtct.weights.direct=0"],
            "(whole recipe): sarr.without_chain 'labels' needs the direct pathway, but mtct.weights.direct "
            "is 0; set it to 'drop' or 'teacher'",
        ),
        (
            ["workers.gpus_per_worker=1"],
            "(whole recipe): workers.gpus_per_worker and engines.gpus_per_engine must both be 0 or both "
            "be positive",
        ),
        (
            ["model.attention=flex", "model.mixed_precision=false"],
            "(whole recipe): model.attention 'flex' trains on GPUs only, for torch has no backward pass of "
            "it on CPU; set it to 'sdpa', or workers.gpus_per_worker and engines.gpus_per_engine",
        ),
        (
            ["model.attention=flex", "model.dtype=float32", "model.mixed_precision=auto"],
            "model: attention 'flex' wants one dtype; set mixed_precision to false, or use 'sdpa'",
        ),
        (
            ["workers.num_workers=33"],
            "(whole recipe): mtct.batch_size 16 is smaller than workers.num_workers 33: every worker needs "
            "an image in every step",
        ),
        (
            ["model.dtype=bfloat16", "model.mixed_precision=false", "workers.zero_stage=0"],
            "(whole recipe): workers.zero_stage 0 with model.dtype bfloat16 has DeepSpeed take a step of "
            "Adam before there are gradients, and its bias correction is a step too far; set "
            "workers.zero_stage=1, which shards the optimizer's state alone",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_named(overrides, line):
    assert f"  {line}" in mistakes("demo", *overrides).splitlines()


def test_a_config_in_bfloat16_at_stage_0_that_a_run_has_recorded_is_read_as_it_is():
    text = dump_config(load_config("pacs-internvl3-8b")).replace("zero_stage: 1", "zero_stage: 0")
    assert parse_config(text).workers.zero_stage == 0
    assert "workers.zero_stage 0 with" in mistakes("pacs-internvl3-8b", "workers.zero_stage=0")


@pytest.mark.parametrize("name", [n for n in recipe_names() if load_config(n).workers.gpus_per_worker])
def test_recipes_for_gpus_leave_time_for_nodes_to_start_and_large_ones_save_memory(name):
    config = load_config(name)
    assert config.workers.zero_stage == 1
    assert config.workers.scheduling_timeout_s == config.engines.start_timeout_s == 3600
    assert config.workers.gradient_checkpointing == ("SmolVLM-256M" not in config.model.path)


def test_labels_only_needs_no_rounds():
    config = load_config("demo", ["mtct.weights.reasoning=0", "sarr.rounds=0"])
    assert config.mtct.weights.reasoning == 0


@pytest.mark.parametrize("override", ["sarr.rounds", "=2", ""])
def test_an_override_without_key_or_value_shows_the_form(override):
    assert f"override '{override}' is not of the form key.path=value" in mistakes("demo", override)


def test_an_override_below_a_value_is_refused():
    assert "'rounds' is a value, not a section" in mistakes("demo", "sarr.rounds.x=1")


def test_a_missing_recipe_names_the_nearest_or_all():
    assert mistakes("demmo").startswith("no recipe 'demmo'; did you mean 'demo'?")
    assert ", ".join(recipe_names()) in mistakes("xyz")
    assert "no recipe 'nowhere/mine.yaml'" in mistakes("nowhere/mine.yaml")


def test_a_file_that_is_no_recipe_says_why(recipe):
    assert "not valid YAML" in mistakes(recipe("a: [1"))
    assert "a recipe is a mapping of settings, not a list" in mistakes(recipe("- a"))


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1


def test_a_dump_has_every_setting():
    def leaves(model):
        for name, value in model:
            if isinstance(value, BaseModel):
                yield from (f"{name}.{leaf}" for leaf in leaves(value))
            else:
                yield name

    def keys(tree):
        for name, value in tree.items():
            if isinstance(value, dict) and value:
                yield from (f"{name}.{leaf}" for leaf in keys(value))
            else:
                yield name

    config = Config()
    assert list(keys(yaml.safe_load(dump_config(config)))) == list(leaves(config))


def test_a_config_of_release_0_1_0_is_read_by_its_names_now():
    config = load_config("demo", ["mtct.lr_scheduler=linear", "model.mm_processor_kwargs.do_resize=false"])
    text = (
        dump_config(config)
        .replace("lr_scheduler:", "schedule:")
        .replace("mm_processor_kwargs:", "image_settings:")
    )
    assert parse_config(text) == config


def test_a_setting_by_its_name_of_release_0_1_0_is_told_its_name_now():
    with pytest.raises(ConfigError, match=r"mtct\.schedule: is called lr_scheduler now"):
        load_config("demo", ["mtct.schedule=linear"])


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("name: 010", "name", "010"),
        ("data: {held_out: [no, 1.10, 2024-05-01]}", "data.held_out", ["no", "1.10", "2024-05-01"]),
        ("data: {dataset: 2024, chains: off}", "data.chains", "off"),
        ("lora:\nmtct: {epochs: 2}", "lora.rank", 8),
        ("sarr: {training: }", "sarr.rounds", 3),
    ],
)
def test_a_recipe_is_read_as_it_is_written(recipe, text, path, value):
    config = load_config(recipe(text))
    for part in path.split("."):
        config = getattr(config, part)
    assert config == value


def test_what_is_dumped_is_read_as_it_was():
    settings = ["name=010", "data.held_out=[no, 1.10, 1e5, true, 2024-05-01]", "mtct.learning_rate=1e-5"]
    config = load_config("demo", settings)
    assert parse_config(dump_config(config)) == config
