"""A process that dies between two changes to storage, at each of them in turn."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest

from rdmldg_ray import storage
from rdmldg_ray.storage import files

_CHANGES = ("write_chunks", "write_if_unchanged", "delete_file", "delete_folder")


class KilledError(BaseException):
    """No handler of errors is to see it."""


def killed_at_each_step(before: Path, work: Callable[[str], Any]) -> Iterator[str]:
    """Copies of a storage after work that died before its first, second, ... change, until it went through.

    From that change on all fail, for a process that is gone tidies nothing up.
    """
    for steps in count():
        root = before.with_name(f"{before.name}-{steps}")
        copytree(before, root)
        with pytest.MonkeyPatch.context() as patch:
            left = iter(range(steps))
            for name in _CHANGES:
                changed = _mortal(getattr(files, name), left)
                patch.setattr(files, name, changed)
                patch.setattr(storage, name, changed)
            try:
                work(str(root))
            except KilledError:
                went_through = False
            else:
                went_through = True
        yield str(root)
        rmtree(root)
        if went_through:
            return


def _mortal(change: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def changed(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise KilledError
        return change(*arguments, **named)

    return changed
