"""Which names domains and classes may have: those that work in prompts, settings, paths and tables."""

import re
import unicodedata

import yaml

from rdmldg_ray.chains.format import find_mark, normalize_answer
from rdmldg_ray.config.schema import as_list
from rdmldg_ray.domainbed.folds import SEPARATOR, WORDS

# A fold of several domains is one folder, of at most 255 bytes.
_MAX_DOMAIN_BYTES = 100
# Of an option, which is repeated in every prompt.
_MAX_CLASS_CHARACTERS = 1000
# Folders and files of a run, beside which each fold has a folder, and of a teacher's chains, beside which
# each domain has one.
_TAKEN = frozenset(
    (
        "analyses",
        "config.yaml",
        "config.yaml.lock",
        "refiltered.json",
        "report.html",
        "results.jsonl",
        "state.json",
        "versions.json",
        "_journal",
        "_lock.json",
        "_lock.json.lock",
        "annotation.json",
        "chains.json",
        "chains.json.lock",
    )
)
# What Python reads for bytes that are no UTF-8, and JSON for half of a pair.
_SURROGATE = re.compile("[\ud800-\udfff]")
# They turn the direction of what is printed after them.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """A text that can be stored and printed: bytes that are no UTF-8, and control characters, are escaped."""
    return "".join(_escaped(character) if _is_control(character) else character for character in text)


def _escaped(character: str) -> str:
    # Python reads a byte that is no UTF-8 as one of these.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def is_encodable(text: str) -> bool:
    """Whether a text can be written in UTF-8."""
    return text.isascii() or not _SURROGATE.search(text)


def domain_fault(name: str) -> str | None:
    """What is wrong with a domain's name, or None: it becomes a folder, a fold, a value of data.held_out."""
    if not name.strip():
        return "is empty"
    if fault := _character_fault(name):
        return fault
    if name != name.strip():
        return "begins or ends with a space"
    if name.startswith("."):
        return "begins with a dot, as hidden folders do"
    for character in ("/", "\\", SEPARATOR, ","):
        if character in name:
            return f"has a '{character}', which separates folders, or the domains of a fold or setting"
    if len(name.encode()) > _MAX_DOMAIN_BYTES:
        return f"has {len(name.encode())} bytes; at most {_MAX_DOMAIN_BYTES} fit into the name of a fold"
    if name in WORDS:
        return "stands for many folds in data.held_out"
    if name in _TAKEN:
        return "is the name of a file or folder of a run or of chains"
    if _as_setting(name) != [name]:
        return "is read as something else by YAML in data.held_out"
    return None


def class_fault(name: str) -> str | None:
    """What is wrong with the name of a class or an option, or None: it stands in prompts and chains."""
    if fault := _character_fault(name):
        return fault
    if mark := find_mark(name):
        return f"has {mark}, which prompts and chains use"
    if len(name) > _MAX_CLASS_CHARACTERS:
        return f"has {len(name)} characters; at most {_MAX_CLASS_CHARACTERS} are shown in a prompt"
    if not normalize_answer(name):
        return "has no letter or digit, by which answers are told apart"
    return None


def _character_fault(name: str) -> str | None:
    if not is_encodable(name):
        return "has bytes that are no UTF-8, or half of a character"
    found = next((character for character in name if _is_control(character)), None)
    if found is None:
        return None
    return f"has the control character {_escaped(found)}"


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING


def _as_setting(name: str) -> object:
    try:
        return as_list(yaml.safe_load(name))
    # Also of a date that does not exist, or of more digits than are read as a number.
    except (yaml.YAMLError, ValueError):
        return None
