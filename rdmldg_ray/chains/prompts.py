"""The prompts of the two pathways, and their version.

Both pathways see the same image, the same question and the same options; what they share comes
first, so that MTCT can lay it down once for both (see ``rdmldg_ray.mtct.layout``).
"""

from collections.abc import Sequence

from rdmldg_ray.chains.format import STAGES

# Stored with every chain; raise it with any change of a text below.
PROMPT_VERSION = "1"

QUESTION = "What type of object is in this photo?"
_OPTIONS = "Choose from the following options: {options}."
_DIRECT = "Answer with one option only."
_REASON = (
    "Reason in five stages, each in its own tags: "
    + ", ".join(f"<{stage}>" for stage in STAGES)
    + ". The conclusion is one option only."
)


def display_name(class_name: str) -> str:
    """A class or folder name as it is shown to a model: ``sea_animal`` becomes ``sea animal``."""
    return " ".join(class_name.replace("_", " ").split())


def direct_prompt(class_names: Sequence[str], question: str = QUESTION) -> str:
    """q_cls, the direct pathway: question, options, and the request for the option alone."""
    return f"{_shared(class_names, question)}\n{_DIRECT}"


def reasoning_prompt(class_names: Sequence[str], question: str = QUESTION) -> str:
    """q_reason, the reasoning pathway: question, options, and the request for five stages."""
    return f"{_shared(class_names, question)}\n{_REASON}"


def _shared(class_names: Sequence[str], question: str) -> str:
    options = ", ".join(display_name(name) for name in class_names)
    return f"{question} {_OPTIONS.format(options=options)}"
