"""`bkctl demo`: what BookKeeper promises, shown on this machine with real processes."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkctl.cli.app import single_command
from bkctl.cli.confirm import note
from bkctl.cli.event_loop import run
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.options import global_options
from bkctl.cli.render import Column, colored, emit, use_color

if TYPE_CHECKING:
    from bkctl.cli.demo_story import Act

app = single_command()


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the bookies running, for `bkctl cluster down`.")
    ] = False,
) -> None:
    """Write to three bookies, kill one, replace it, fence, recover, and verify every entry.

    Takes some seconds, in a temporary directory. Exit code 0 only if everything held, else 7.
    """
    from bkctl.cli.demo_story import tell

    options = global_options()
    directory = Path(tempfile.mkdtemp(prefix="bkctl-demo-"))
    kept = False
    acts: list[Act] = []

    def on_act(act: "Act") -> None:
        acts.append(act)
        if options.output is None:
            _print(act)

    try:
        run(tell(directory, on_act, keep=keep))
        kept = keep
    finally:
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)
    if options.output is not None:
        rows = [
            {"act": act.title, "state": act.state, "seconds": round(act.seconds, 2), "detail": act.detail}
            for act in acts
        ]
        emit("Demo", rows, [Column("act"), Column("state"), Column("seconds"), Column("detail")])
    if kept:
        note(f"the bookies go on running; end them with: bkctl cluster down --dir {directory}")
    if any(act.state != "ok" for act in acts):
        raise typer.Exit(ExitCode.INTEGRITY)


def _print(act: "Act") -> None:
    mark = "✓" if act.state == "ok" else "✗"
    if use_color(sys.stdout, global_options().color):
        mark = colored(mark, "green" if act.state == "ok" else "red")
    sys.stdout.write(f"{mark} {act.title} ({act.seconds:.1f} s)\n    {act.detail}\n")
    sys.stdout.flush()
