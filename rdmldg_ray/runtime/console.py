"""The console that everything is printed to."""

import os
from typing import Any

from rich.console import Console


def plain_console(**settings: Any) -> Console:
    """A console that prints strings as they are: names and chains may hold ``[red]`` or ``:dog:``.

    That goes for the cells of tables and the columns of progress bars as well; what has a style is given
    one by ``style=`` or is a ``Text``.

    Args:
        settings: of ``rich.console.Console``.
    """
    if os.environ.get("COLUMNS", "").strip() == "0":
        os.environ.pop("COLUMNS")  # rich would print nothing
    return Console(markup=False, emoji=False, highlight=False, **settings)
