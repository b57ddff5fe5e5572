"""What people are shown is run: the Python snippet, and every command or one that differs in size only.

A command that is new in a document fails here until one of the tables below says how it is run.
"""

import json
import re
import shlex
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.cli import app
from rdmldg_ray.config.load import dump_config, load_config, override_config, recipe_names
from rdmldg_ray.domainbed.catalogue import get_dataset
from rdmldg_ray.sweeps.variants import LABELS, ablation_configs
from tests.helpers import documented
from tests.helpers.finished_run import SMALL, write_photos
from tests.helpers.openai_endpoint import Endpoint, completion, serving

PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
ON_MINE = "data.dataset=mine data.chains=gpt-4o engines.num_engines=1"
ABLATION = [*SMALL, "data.held_out=flat", "mtct.epochs=1", *ON_MINE.split()]


@dataclass(frozen=True)
class Run:
    """How a command is run: where, what is written for its placeholders, and what makes it small."""

    outcome: str
    """Of what it prints."""
    where: str = "finished"
    given: dict[str, str] = field(default_factory=dict)
    small: str = ""
    codes: tuple[int, ...] = (0,)

    def arguments(self, command: str) -> list[str]:
        words = [self.given.get(word, word) for word in shlex.split(command)]
        return [*words[1:], *self.small.split()]


# In this order: in "finished" lies a finished run, "new" and "own" have only the files that are named.
RUN = {
    "rdmldg run my.yaml --dry-run": Run("plan of run 'mine'"),
    "rdmldg run my.yaml": Run("run 'mine' is complete"),
    "rdmldg doctor my.yaml": Run("answers, with 1 models"),
    "rdmldg init new.yaml --from pacs-internvl3-8b --dataset mine --chains gpt-4o": Run("is written"),
    "rdmldg list": Run("mine"),
    "rdmldg clean demo --dry-run": Run("would be free"),
    "rdmldg list datasets": Run("gpt-4o"),
    "rdmldg settings mtct": Run("mtct.learning_rates.vision"),
    "rdmldg status mine --watch": Run("complete"),
    "rdmldg status demo": Run("complete"),
    "rdmldg status demo --watch --json": Run('"status": "complete"'),
    "rdmldg show mine --verdict rejected": Run("runs/mine/flat/sarr-1/candidates"),
    "rdmldg show demo --verdict rejected": Run("runs/demo/flat/sarr-1/candidates"),
    "rdmldg show teacher": Run("5 of 1148 chains"),
    "rdmldg report mine": Run("report.html"),
    "rdmldg report demo": Run("report.html"),
    "rdmldg report demo --prices 2.5 0.023": Run("report.html"),
    # Its model is on a hub; and whether there is a GPU is what it is to find out.
    "rdmldg doctor pacs-internvl3-8b": Run("GPU", small="model.path=tiny", codes=(0, 1)),
    "rdmldg export mine --out my-model": Run(
        "model-of-mine: tiny with ", given={"my-model": "model-of-mine"}
    ),
    "rdmldg export demo --out my-model": Run("my-model: tiny with "),
    "rdmldg calibrate demo --out rates.json": Run("the rates of run 'demo'"),
    "rdmldg run iconbed --dry-run --calibration rates.json --prices 2.5 0.023": Run("estimate"),
    "rdmldg run iconbed --dry-run": Run("plan of run 'iconbed'"),
    "rdmldg refilter mine sarr.filter.min_logprob=-0.8": Run("runs/mine-refiltered"),
    "rdmldg refilter demo sarr.filter.min_logprob=-0.8": Run("runs/demo-refiltered"),
    "rdmldg collect 'pacs-internvl3-8b-trial-*'": Run("records of 3 runs"),
    "rdmldg analyze tokens demo": Run("tokens.csv and .png"),
    "rdmldg analyze entropy demo": Run("entropy-zero-shot-sarr-1.csv and .png"),
    "rdmldg analyze mmd demo": Run("mmd.csv and .png"),
    "rdmldg analyze rejected demo": Run("rejected.csv and .png"),
    "rdmldg analyze adaptive demo": Run("adaptive-sarr-1.csv and .png"),
    "rdmldg analyze new-classes demo": Run("new-classes.csv and .png", given={"demo": "base"}),
    # The finished run holds out another domain than the demo.
    "rdmldg evaluate iconbed data.held_out=sketch --adapter rdmldg-store/runs/demo/sketch/mtct/adapter": Run(
        "target (all)",
        given={"rdmldg-store/runs/demo/sketch/mtct/adapter": "rdmldg-store/runs/demo/flat/mtct/adapter"},
        small=f"{ON_MINE} evaluation.max_new_tokens=16",
    ),
    # Of its runs, the one on labels is not there yet.
    "rdmldg ablate iconbed": Run("labels only", small=" ".join(ABLATION).replace(", ", ",")),
    "rdmldg baselines iconbed": Run(
        "linear probe on the base", small=f"{ON_MINE} data.held_out=flat --yardsticks linear-probe,cnn"
    ),
    "rdmldg ingest PACS.zip --dataset pacs": Run("PACS from ", "new"),
    "rdmldg run pacs-internvl3-8b --dry-run": Run("plan of run 'pacs-internvl3-8b'", "new"),
    "rdmldg annotate pacs --teacher gpt-4o --dry-run": Run("to ask: 56 samples", "new"),
    "rdmldg annotate pacs --teacher gpt-4o --max-cost 20": Run("56 chains", "new"),
    "rdmldg chains import made.jsonl --dataset pacs --teacher my-teacher": Run("56", "new"),
    "rdmldg chains export --dataset iconbed --out out": Run("1148 chains of rules", "new"),
    "rdmldg ingest rows.jsonl --dataset custom --name my-questions": Run("2 questions, 2 answers", "new"),
    # The teacher says "yes" to both questions.
    "rdmldg annotate my-questions --teacher MODEL": Run("3 rejected", "new", {"MODEL": "gpt-4o"}),
    "rdmldg ingest photos --dataset custom --name mine": Run("mine from ", "own"),
    "rdmldg annotate mine --teacher gpt-4o --max-cost 20": Run("90 chains", "own"),
}

# The test that runs a command, on less data or with less training, but otherwise as it is shown.
TESTED = {
    "make demo": "runs/test_run_real.py::test_the_demo_runs_with_everything_on_object_storage",
    "rdmldg run iconbed": "runs/test_run_real.py::test_a_run_that_is_ended_thrice_is_the_unbroken_one",
    "rdmldg run my.yaml sarr.rounds=3 name=long": "docs/test_commands.py::test_the_python_snippet_runs",
    "rdmldg run iconbed --storage s3://bucket/x": (
        "runs/test_run_real.py::test_the_demo_runs_with_everything_on_object_storage"
    ),
    "rdmldg run iconbed-vqa": "runs/test_run_questions_real.py::test_every_stage_is_complete",
    "rdmldg run iconbed-vqa name=mine data.dataset=my-questions data.chains=MODEL data.held_out=all": (
        "runs/test_run_questions_real.py::test_every_stage_is_complete"
    ),
    "rdmldg analyze questions iconbed-vqa": (
        "runs/test_run_questions_real.py::test_the_analysis_of_questions_is_printed"
    ),
    "rdmldg sweep iconbed --space filters": (
        "sweeps/test_tuner_real.py::"
        "test_a_killed_sweep_loses_no_trial_shares_its_stages_and_marks_the_one_that_fails"
    ),
    "rdmldg attach ID": "runtime/test_submission_real.py::test_ctrl_c_leaves_a_job_or_stops_it",
    "rdmldg --install-completion": "cli/test_shell.py::test_completion_can_be_installed",
    "python -m rdmldg_ray": "cli/test_shell.py::test_the_module_is_the_command",
    "python -m tools.settings_table --write docs/recipes-and-settings.md": (
        "docs/test_settings_table.py::test_the_table_is_written_between_the_markers"
    ),
    "python -m tools.autoscale.rehearse > autoscale.json": (
        "tools/test_autoscale.py::test_nodes_come_for_training_and_for_engines_and_go_when_idle"
    ),
    "python -m tools.scale.control_path --samples 10000 100000": (
        "tools/test_scale.py::test_every_image_is_streamed_once_and_every_candidate_is_judged"
    ),
    "pip install -e .": "test_wheel.py::test_it_runs_from_an_empty_folder",
}

# What runs the tests.
AROUND = {
    "make setup",
    "make test",
    "make test-quick",
    ".venv/bin/pytest -m 'not slow'",
    "pytest tests/cluster",
}

# How commands begin that need what a test has not, and the word that says so beside them.
NEEDS = {
    "pip install -e .[gpu]": "GPU",
    "rdmldg annotate pacs --teacher vllm --model OpenGVLab/InternVL3-8B-hf": "GPU",
    "rdmldg run pacs-internvl3-8b --trials 0,1,2": "GPU",
    **{
        f"rdmldg run {name} workers.num_workers=1 engines.num_engines=1": "H100"
        for name in recipe_names()
        if "iconbed" not in name and name != "demo"
    },
    "rdmldg submit ": "cluster",
    "rdmldg annotate pacs --teacher gpt-4o --max-cost 50 --storage s3://my-bucket/rdmldg": "cluster",
    "rdmldg collect 'pacs-internvl3-8b-trial-*' --storage s3://my-bucket/rdmldg": "cluster",
    "rdmldg report pacs-internvl3-8b-trial-0 --storage s3://my-bucket/rdmldg": "cluster",
    "docker ": "image",
    "aws ": "AWS",
    "ray ": "AWS",
    "(umask 077; mkdir -p ~/.ray; openssl": "AWS",
    "export RDMLDG_REGION": "AWS",
    "export RDMLDG_SUBNET": "AWS",
    "export RDMLDG_IMAGE": "Kubernetes",
    "export RAY_": "cluster",
    "envsubst '$RDMLDG_REGION": "AWS",
    "envsubst '$RDMLDG_IMAGE": "Kubernetes",
    "kubectl ": "Kubernetes",
    "python -m tools.chaos.rehearse FOLDER": "an hour",
    "vllm serve my-model": "needs vLLM",
}


def needs(command: str) -> list[str]:
    return [word for begin, word in NEEDS.items() if command.startswith(begin)]


def is_name(command: str) -> bool:
    """Whether only a command is named, which does nothing without more words."""
    named = get_command(app)
    words = command.split()
    if words.pop(0) != "rdmldg":
        return False
    while words and words[0] in getattr(named, "commands", ()):
        named = named.commands[words.pop(0)]
    return not words and any(parameter.required for parameter in named.params)


SHOWN = [one for one in documented.shown() if not is_name(one.command)]


@pytest.mark.parametrize("one", SHOWN, ids=lambda one: one.command)
def test_it_is_known_how_each_command_is_run(one):
    command, words = one.command, needs(one.command)
    kinds = [command in RUN, command in TESTED, command in AROUND, bool(words)]
    assert sum(kinds) == 1, f"{one.place}: say in one of the tables how '{command}' is run"
    for word in words:
        assert word in one.said, f"{one.place}: say beside '{command}' what it needs ({word})"


def test_no_table_has_a_command_that_is_not_shown():
    commands = {one.command for one in SHOWN}
    assert {*RUN, *TESTED, *AROUND} <= commands
    assert [begin for begin in NEEDS if not any(command.startswith(begin) for command in commands)] == []


@pytest.mark.parametrize("test", sorted(set(TESTED.values())))
def test_the_tests_that_run_a_command_are_there(test):
    file, name = test.split("::")
    assert f"\ndef {name}(" in (documented.REPOSITORY / "tests" / file).read_text()


def test_make_runs_what_is_said():
    makefile = (documented.REPOSITORY / "Makefile").read_text()
    needs = dict(re.findall(r"^([\w-]+):(.*)$", makefile, re.M))
    assert {one.command.removeprefix("make ") for one in SHOWN if one.command.startswith("make ")} <= {*needs}
    assert "\ndemo: setup\n\t$(BIN)/rdmldg demo\n" in makefile
    assert needs["test"].split() == ["test-quick"] and needs["test-quick"].split() == ["lint"]
    assert needs["lint"].split() == ["setup"]


def chain(label):
    return render_chain({**dict.fromkeys(SECTIONS, "What is to be seen."), "CONCLUSION": label})


def write_files(folder, png):
    """The files that the commands read; returns their images as rows with chains."""
    rows = []
    with zipfile.ZipFile(folder / "PACS.zip", "w") as archive, (folder / "made.jsonl").open("w") as made:
        for domain in get_dataset("pacs").environments:
            for label in PACS_CLASSES:
                for number in range(2):
                    path = f"{domain}/{label}/{number}.png"
                    row = {"id": path, "image": png((32, 32), seed=len(rows)), "chain": chain(label)}
                    rows.append(row)
                    archive.writestr(f"PACS/{path}", row["image"])
                    turns = [
                        {"role": "user", "content": "<image>What is this?"},
                        {"role": "assistant", "content": row["chain"]},
                    ]
                    made.write(json.dumps({"messages": turns, "images": [path]}) + "\n")
    [block] = documented.blocks("docs/own-data.md", "json")
    questions = block.splitlines()
    (folder / "rows.jsonl").write_text(block)
    [photo] = {json.loads(line)["image"] for line in questions}
    (folder / photo).parent.mkdir()
    (folder / photo).write_bytes(png((48, 48), seed=len(rows)))
    return [*rows, {"id": photo, "image": (folder / photo).read_bytes(), "chain": chain("yes")}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, finished_run, png):
    """The folders that commands run in, and an endpoint that knows the chains of the images there."""
    folder = tmp_path_factory.mktemp("shown")
    found = {"finished": finished_run.folder, "new": folder / "new", "own": folder / "own"}
    found["new"].mkdir()
    rows = write_photos(found["own"]) + write_files(found["new"], png)
    endpoint = Endpoint(rows, lambda row, before: completion(row["chain"]))
    with serving(endpoint), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", endpoint.url)
        patch.setenv("OPENAI_API_KEY", "sk-of-a-test-0123456789")
        yield found


@pytest.mark.slow
def test_the_python_snippet_runs(finished_run):
    results = finished_run.results
    assert finished_run.asked == 90
    assert results.held_out == ["flat"] and results.models("flat") == ["zero-shot", "mtct", "sarr-1"]
    assert "flat sarr-1 {'direct': {'target_in': " in finished_run.printed
    assert finished_run.names["answers"].num_rows == 2 * (30 + 2 * 6)


def copy_run(results, config):
    """The finished run under another name and config."""
    target = Path(results.root, "runs", config.name)
    shutil.copytree(results.location, target)
    (target / "config.yaml").write_text(dump_config(config))
    seed = f'"trial_seed": {config.data.trial_seed}'
    records = target / "results.jsonl"
    records.write_text(records.read_text().replace('"trial_seed": 0', seed))


@pytest.fixture(scope="module")
def runs(finished_run):
    """The finished run under every name that the commands have for one."""
    results = finished_run.results
    configs = [override_config(results.config, ["name=demo"])]
    configs += [override_config(results.config, ["name=base", "data.classes=base"])]
    for seed in (0, 1, 2):
        trial = [f"name=pacs-internvl3-8b-trial-{seed}", f"data.trial_seed={seed}"]
        configs.append(override_config(results.config, trial))
    ablation = ablation_configs(load_config("iconbed", [*ABLATION, f"storage={results.root}"]))
    configs += [config for kind, config in ablation.items() if kind != LABELS]
    for config in configs:
        copy_run(results, config)


@pytest.mark.slow
def test_every_command_does_what_is_said(runs, folders, shared_ray, monkeypatch, subtests):
    for command, how in RUN.items():
        monkeypatch.chdir(folders[how.where])
        with subtests.test(command):
            result = CliRunner().invoke(app, how.arguments(command), env={"COLUMNS": "200"})
            assert result.exit_code in how.codes, result.output
            assert how.outcome in result.output
    left = {"finished": ("report.html", "my-model/model.safetensors"), "new": ("out/chains.jsonl",)}
    files = [folders[where] / file for where, names in left.items() for file in names]
    assert [file for file in files if not file.exists()] == []
