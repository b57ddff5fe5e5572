import json

import pytest
import torch
import yaml
from peft import PeftModel

from rdmldg_ray.config.schema import LoraConfig
from rdmldg_ray.models.card import CARD_FILE, shared_name, write_card
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import load_trained, make_trainable, save_trained

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("folder", "name", "revision"),
    [
        (f"hub/models--OpenGVLab--InternVL3-8B-hf/snapshots/{COMMIT}", "OpenGVLab/InternVL3-8B-hf", COMMIT),
        (f"hub/models--gpt2/snapshots/{COMMIT}", "gpt2", COMMIT),
        ("home/somebody/my model", "my model", None),
        ("home/somebody/snapshots/mine", "mine", None),
        ("home/somebody/tiny_base", "tiny_base", None),
    ],
)
def test_a_base_is_known_by_a_name_without_directories_of_this_machine(tmp_path, folder, name, revision):
    assert shared_name(tmp_path / folder) == (name, revision)


def test_the_embedded_base_is_known_by_its_setting():
    assert shared_name(TINY_BASE) == ("tiny", None)


@pytest.mark.parametrize("enabled", [True, False])
def test_what_a_training_leaves_names_its_base_and_no_path(
    enabled, load_random_base, random_base, tmp_path, monkeypatch
):
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", pytest.fail)
    base = tmp_path / f"hub/models--org--base/snapshots/{COMMIT}"
    base.parent.mkdir(parents=True)
    base.symlink_to(random_base)
    config = LoraConfig(enabled=enabled, parts=["decoder"])
    model = make_trainable(load_random_base(), family_of(base), config)
    for number in range(2):  # the second one goes on from the first
        folder = tmp_path / f"trained-{number}"
        save_trained(model, folder)
        write_card(folder, base, run="pacs", dataset="pacs", model="art_painting+sketch/sarr-1")
        written = [file.read_text() for file in folder.iterdir() if file.suffix in (".json", ".md")]
        assert not [text for text in written if str(tmp_path) in text or str(random_base) in text]
        model = load_trained(load_random_base(), family_of(base), config, folder)
    header, card = (folder / CARD_FILE).read_text().removeprefix("---\n").split("\n---\n")
    assert yaml.safe_load(header)["base_model"] == "org/base"
    assert "art_painting+sketch, of which no image" in card and "| stage | sarr-1 |" in card
    assert f"org/base, revision {COMMIT}" in card
    assert "rdmldg export pacs --held-out art_painting+sketch --stage sarr-1 --out FOLDER" in card
    assert (f'from_pretrained("org/base", revision="{COMMIT}")' in card) == enabled
    if enabled:
        told = json.loads((folder / "adapter_config.json").read_text())
        assert (told["base_model_name_or_path"], told["revision"]) == ("org/base", COMMIT)
        plain = PeftModel.from_pretrained(load_random_base(), folder)
        saved, again = model.state_dict(), plain.state_dict()
        assert all(torch.equal(saved[name], weight) for name, weight in again.items())
