"""Progress on stderr: a bar on a terminal, and nothing anywhere else."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from bkctl.cli.options import global_options

_Update = Callable[[float, str], None]


@contextlib.contextmanager
def progress(title: str, total: float | None) -> Iterator[_Update]:
    """Yields `update(done, words)`; cheap enough to call a few times per second.

    `done` counts up to `total` (None: unknown). The bar is gone at the end.
    """
    if global_options().quiet or not sys.stderr.isatty():
        yield lambda done, words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    bar = Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), auto_refresh=False, transient=True
    )
    task = bar.add_task(title, total=total, words="")

    def update(done: float, words: str) -> None:
        bar.update(task, completed=done, words=words, refresh=True)

    with bar:
        yield update
