"""`bkctl version`."""

import platform

from bkctl import __version__
from bkctl.cli.app import single_command
from bkctl.cli.render import Column, emit

app = single_command()


@app.command()
def version() -> None:
    """Show the versions of bkctl and of what it runs on."""
    row = {"bkctl": __version__, "python": platform.python_version(), "platform": platform.platform()}
    emit("Version", [row], [Column("bkctl"), Column("python"), Column("platform")])
