"""The options that tell a command which bookie, or whose directories, it is about."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkctl.cli.confirm import note
from bkctl.cli.context import chosen_context
from bkctl.cli.options import global_options
from bkctl.errors import BadInputError

if TYPE_CHECKING:
    from bkctl.config import BookieSettings
    from bkctl.offline.directories import BookieDirectories

ConfFile = Annotated[
    Path | None, typer.Option("-c", "--conf", metavar="FILE", help="Java's bk_server.conf, read as it is.")
]
Port = Annotated[
    int | None,
    typer.Option("-p", "--port", min=0, max=65535, help="0 takes a free one; else bookiePort, 3181."),
]
Journals = Annotated[
    list[str] | None, typer.Option("-j", "--journal", metavar="DIR", help="Journal directory; repeatable.")
]
Ledgers = Annotated[
    list[str] | None, typer.Option("-l", "--ledgers", metavar="DIR", help="Ledger directory; repeatable.")
]
Indexes = Annotated[
    list[str] | None,
    typer.Option(
        "-i", "--index", metavar="DIR", help="Index directory, one per ledger directory; repeatable."
    ),
]
BookieIdOption = Annotated[
    str | None, typer.Option("--bookie-id", metavar="ID", help="Identity; else HOST:PORT.")
]
AdvertisedAddress = Annotated[
    str | None, typer.Option("--advertised-address", metavar="HOST", help="Where clients reach this bookie.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of bk_server.conf; repeatable."),
]


def load_settings(
    conf: Path | None,
    port: int | None,
    journals: list[str] | None,
    ledgers: list[str] | None,
    indexes: list[str] | None,
    bookie_id: str | None,
    advertised_address: str | None,
    settings: list[str] | None,
    force_read_only: bool = False,
    *,
    without_metadata: bool = False,
) -> "BookieSettings":
    """The settings: flags over `--set` over the file over defaults.

    `without_metadata`: its URI may be "" in them. Raises BadInputError for what cannot be used, also
    when no metadata store is named otherwise; NotFoundError for a context that is not there.
    """
    from bkctl.config import load_bookie_settings

    overrides: dict[str, str] = {}
    for pair in settings or []:
        key, equals, value = pair.partition("=")
        if not key.strip() or not equals:
            raise BadInputError(f"cannot use --set '{pair}'; write KEY=VALUE")
        overrides[key.strip()] = value.strip()
    flags = {
        "bookiePort": None if port is None else str(port),
        "journalDirectories": ",".join(journals or []),
        "ledgerDirectories": ",".join(ledgers or []),
        "indexDirectories": ",".join(indexes or []),
        "bookieId": bookie_id,
        "advertisedAddress": advertised_address,
        "forceReadOnlyBookie": "true" if force_read_only else None,
    }
    overrides |= {key: value for key, value in flags.items() if value}
    options = global_options()
    if options.metadata_uri or options.context:
        overrides["metadataServiceUri"] = chosen_context(options).metadata_uri
    loaded = load_bookie_settings(conf, overrides)
    if not loaded.metadata_uri:
        try:
            overrides["metadataServiceUri"] = chosen_context(options).metadata_uri
        except BadInputError:
            if without_metadata:
                return loaded
            raise
        loaded = load_bookie_settings(conf, overrides)
    return loaded


def bookie_directories(
    conf: Path | None, journals: list[str] | None, ledgers: list[str] | None, indexes: list[str] | None
) -> "BookieDirectories":
    """The directories of a bookie on this machine, for commands that look at its files.

    A directory may be named with or without its `current`. A note on stderr tells when a process
    has them open: the files may change while they are read.

    Raises BadInputError when nothing names a directory, NotFoundError when one is not there.
    """
    from bkctl.config import load_bookie_settings
    from bkctl.offline.directories import BookieDirectories

    flags = {
        "journalDirectories": ",".join(journals or []),
        "ledgerDirectories": ",".join(ledgers or []),
        "indexDirectories": ",".join(indexes or []),
    }
    found = {key: value for key, value in flags.items() if value}
    if conf is None and not found:
        raise BadInputError("no directories named; give -c FILE, or -j DIR and -l DIR")
    settings = load_bookie_settings(conf, found)
    directories = BookieDirectories.of(
        settings.journal_directories if conf or "journalDirectories" in found else (),
        settings.ledger_directories if conf or "ledgerDirectories" in found else (),
        settings.index_directories,
    )
    for user in directories.users():
        note(f"{user}; what is shown may be behind what it knows")
    return directories
