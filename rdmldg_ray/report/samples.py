"""Print samples with their chains, accepted or rejected and why."""

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text


def print_samples(console: Console, chains: list[dict[str, Any]]) -> None:
    """One panel for each chain; rows have ``id``, ``text``, ``accepted``, ``reason``, some a question."""
    for row in chains:
        verdict = "accepted" if row["accepted"] else f"rejected: {row['reason']}"
        title = Text(f"{row['id']}  candidate {row['candidate']}  {verdict}")
        asked = f"{row['question']} {', '.join(row['options'])}\n\n" if row.get("question") else ""
        body = Text(asked + row["text"])
        console.print(Panel(body, title=title, border_style="green" if row["accepted"] else "red"))
