"""How far a stage is: a small file beside its outputs, and a bar that follows it.

Workers write the file, whoever wants to know reads it: the bar in the driver's terminal and a
look from elsewhere see the same thing, and no actor has to be kept for it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rdmldg_ray.storage import join, read_json, write_json

PROGRESS_FILE = "progress.json"
_WRITE_EVERY_S = 1.0
_PLAIN_LINE_EVERY_S = 10.0


class ProgressFile:
    """Written by the one who does the work, at most once a second."""

    def __init__(self, stage: str):
        self.location = join(stage, PROGRESS_FILE)
        self.written_at = 0.0
        self.first: tuple[float, int] | None = None

    def write(self, done: int, total: int, text: str, last: bool = False) -> None:
        """Record that ``done`` of ``total`` is done, with a word on how it goes."""
        now = time.monotonic()
        if last or now - self.written_at >= _WRITE_EVERY_S:
            # A stage that resumes begins with what was done before.
            started, begun = self.first = self.first or (now, done)
            eta_s = (now - started) / (done - begun) * (total - done) if done > begun else None
            state = {"done": done, "total": total, "text": text, "eta_s": eta_s, "written": time.time()}
            write_json(self.location, state)
            self.written_at = now


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


@dataclass
class Bar:
    """One line on the screen: a rich bar in a terminal, plain lines elsewhere."""

    console: Console
    label: str
    progress: Progress | None
    task: Any = None
    printed_at: float = 0.0
    file: ProgressFile | None = None
    note: Callable[[], str] = lambda: ""

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show that ``done`` of ``total`` is done."""
        text = ", ".join(filter(None, [text, self.note()]))
        if self.file:
            self.file.write(done, total, text, last=done == total)
        if self.progress:
            self.progress.update(self.task, completed=done, total=total, text=text)
        elif time.monotonic() - self.printed_at >= _PLAIN_LINE_EVERY_S:
            self.console.print(f"  {self.label}: {done}/{total} {text}".rstrip(), soft_wrap=True)
            self.printed_at = time.monotonic()


@contextmanager
def progress_bar(
    console: Console, label: str, stage: str | None = None, note: Callable[[], str] = lambda: ""
) -> Iterator[Bar]:
    """A bar for the time of the block, which with a stage's folder writes its progress file too.

    Args:
        note: told beside every update.
    """
    file = ProgressFile(stage) if stage else None
    if not console.is_terminal:
        yield Bar(console, label, None, printed_at=time.monotonic(), file=file, note=note)
        return
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None, text="")
        yield Bar(console, label, progress, task, file=file, note=note)


@contextmanager
def follow_progress(
    console: Console, label: str, stage: str, note: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Show a stage's progress file while the block runs."""
    finished = threading.Event()
    with progress_bar(console, label, note=note) as bar:

        def follow() -> None:
            while not finished.wait(_WRITE_EVERY_S):
                try:
                    state = read_json(join(stage, PROGRESS_FILE))
                except ValueError:
                    continue  # nothing written yet, or replaced on S3 between its size and its content
                bar.update(state["done"], state["total"], state["text"])

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
