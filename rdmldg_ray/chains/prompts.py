"""The prompts of the two pathways and of the teacher, and their versions.

Both pathways see the same image, the same question and the same options; what they share comes
first, so that MTCT can lay it down once for both (see ``rdmldg_ray.mtct.shared_prefix``).
"""

from collections.abc import Sequence

from rdmldg_ray.chains.format import SECTIONS, display_name

# Stored with every chain; raise it with any change of a text below.
PROMPT_VERSION = "1"

TEACHER_PROMPT_VERSION = "teacher-1"

QUESTION = "What type of object is in this photo?"
_OPTIONS = "Choose from the following options: {options}."
_DIRECT = "Answer with one option only."
_REASON = (
    "Reason in five stages, each in its own tags: "
    + ", ".join(f"<{stage}>" for stage in SECTIONS)
    + ". The conclusion is one option only."
)

_TEACH = """\
Reason in five stages. Write each in its own tags, in this order, and nothing outside the tags:
<SUMMARY>What is asked, and how you go about it, in a sentence or two.</SUMMARY>
<CAPTION>What the image shows, as far as it bears on the question.</CAPTION>
<REASONING>Step by step from what can be seen to the option that fits.</REASONING>
<REFLECTION>Whether that holds: what speaks against it, and why the next best option fits less.</REFLECTION>
<CONCLUSION>One option, written as in the list, and nothing else.</CONCLUSION>"""


def direct_prompt(class_names: Sequence[str], question: str = QUESTION) -> str:
    """q_cls, the direct pathway: question, options, and the request for the option alone."""
    return f"{_shared(class_names, question)}\n{_DIRECT}"


def reasoning_prompt(class_names: Sequence[str], question: str = QUESTION) -> str:
    """q_reason, the reasoning pathway: question, options, and the request for five stages."""
    return f"{_shared(class_names, question)}\n{_REASON}"


def teacher_prompt(class_names: Sequence[str], question: str = QUESTION) -> str:
    """What a teacher is asked: as q_reason, with a word on what each stage is to hold; never the label."""
    return f"{_shared(class_names, question)}\n{_TEACH}"


def _shared(class_names: Sequence[str], question: str) -> str:
    options = ", ".join(display_name(name) for name in class_names)
    return f"{question} {_OPTIONS.format(options=options)}"
