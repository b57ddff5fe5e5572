"""Names that become part of a path: of runs, data sets, teachers and domains, and those that others gave."""

import unicodedata
from typing import Any

# A folder's name may have 255 bytes on most disks, and what is made beside one adds to it.
_MAX_BYTES = 200


def check_name(what: str, name: Any) -> str:
    """The name, where it is one folder's or file's name and leads nowhere else.

    Args:
        what: what is named, for the message: "the data set".

    Raises:
        ValueError: for one that is empty, too long, ``.`` or ``..``, or has a slash, a backslash, a control
            character or half of a surrogate pair.
    """
    problem = _problem(name)
    if problem:
        raise ValueError(f"{what} {name!r} cannot be named so: the name {problem}; give another name")
    return str(name)


def check_path(what: str, path: str) -> str:
    """A path below a folder, where each of its parts is a name; raises as ``check_name``."""
    for part in path.split("/"):
        problem = _problem(part)
        if problem:
            raise ValueError(
                f"{what} {path!r} leads out of its folder, or is no path: a part of it {problem}; remove or "
                "rename it"
            )
    return path


def _problem(name: Any) -> str | None:
    if not isinstance(name, str):
        return f"is no text but {type(name).__name__}"
    if not name.strip():
        return "is empty"
    if name in (".", ".."):
        return "means a folder that is there already"
    if "/" in name or "\\" in name:
        return "has a slash or a backslash"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "has a control character, or half of one that UTF-8 cannot write"
    if len(name.encode()) > _MAX_BYTES:
        return f"is longer than {_MAX_BYTES} bytes"
    return None
