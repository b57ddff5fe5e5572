"""The model card of what a training leaves, and its base by a name that means the same on every machine."""

import json
from pathlib import Path

from rdmldg_ray import __version__
from rdmldg_ray.models.folder import TINY_BASE

CARD_FILE = "README.md"

_CARD = """---
{header}
tags:
- rdmldg_ray
---
# {model} of the run {run}

{what}, trained with rdmldg_ray {version} (MTCT and SARR). What the base model had is not repeated here.

| | |
| --- | --- |
| base model | {base} |
| data set | {dataset} |
| held-out domain | {held_out}, of which no image was trained on |
| stage | {stage} |

## How to load it

{how}
`rdmldg export {run} --held-out {held_out} --stage {stage} --out FOLDER` writes base and training as one plain
model folder, for transformers and vLLM.
"""
_LOAD_ADAPTER = """    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained({source})
    model = PeftModel.from_pretrained(base, "THIS FOLDER")

Processor and chat template are the base model's.
"""


def shared_name(base: Path) -> tuple[str, str | None]:
    """What others find a base model by: its name and, of one from the hub, its revision.

    Args:
        base: its folder. One that no hub knows is told by its name, without this machine's directories.
    """
    if base == TINY_BASE:
        return "tiny", None
    repository = base.parent.parent.name
    if base.parent.name == "snapshots" and repository.startswith("models--"):  # in the hub's cache
        return repository.removeprefix("models--").replace("--", "/"), base.name
    return base.name, None


def write_card(folder: Path, base: Path, run: str, dataset: str, model: str) -> None:
    """Put the card beside what ``loading.save_trained`` left, and name the base in an adapter's config.

    Args:
        base: the base model's folder on this machine.
        model: what was trained, by fold and stage, as ``paint/sarr-1``.
    """
    name, revision = shared_name(base)
    config = folder / "adapter_config.json"
    adapter = config.is_file()
    if adapter:
        told = json.loads(config.read_text()) | {"base_model_name_or_path": name, "revision": revision}
        config.write_text(json.dumps(told, indent=2, sort_keys=True))
    held_out, stage = model.split("/")
    source = json.dumps(name) + (f', revision="{revision}"' if revision else "")
    if base == TINY_BASE:
        source = "rdmldg_ray.models.folder.TINY_BASE"
    header = [f"base_model: {json.dumps(name)}", f"library_name: {'peft' if adapter else 'transformers'}"]
    card = _CARD.format(
        header="\n".join(header),
        model=model,
        run=run,
        what="A LoRA adapter" if adapter else "Weights of a full fine-tuning",
        version=__version__,
        base=f"{name}, revision {revision}" if revision else name,
        dataset=dataset,
        held_out=held_out,
        stage=stage,
        how=_LOAD_ADAPTER.format(source=source) if adapter else "",
    )
    (folder / CARD_FILE).write_text(card)
