"""`bkctl index`: where a bookie on this machine keeps its entries, and whether that is right."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkctl.cli.app import group
from bkctl.cli.arguments import LedgerArgument, parse_ledger_id, parse_ledger_range
from bkctl.cli.bookie_options import ConfFile, Indexes, Ledgers, bookie_directories
from bkctl.cli.confirm import note
from bkctl.cli.event_loop import termination_signals
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.options import global_options
from bkctl.cli.progress import progress
from bkctl.cli.render import Column, Row, emit, format_bytes
from bkctl.errors import BadInputError, NotFoundError

if TYPE_CHECKING:
    from bkctl.offline.directories import BookieDirectories
    from bkctl.offline.index_check import Finding, IndexCheck
    from bkctl.offline.indexes import Index

app = group("A bookie's index on this machine: where its entries are, and whether that is right.")

_LEDGER_COLUMNS = [
    Column("ledger_id"),
    Column("directory"),
    Column("kind"),
    Column("exists"),
    Column("fenced"),
    Column("limbo"),
    Column("last_entry_id"),
    Column("explicit_lac"),
    Column("has_master_key"),
    Column("master_key", wide=True),
]
_ENTRY_COLUMNS = [
    Column("entry_id"),
    Column("log_id"),
    Column("position"),
    Column("directory", wide=True),
    Column("kind", wide=True),
]
_STATS_COLUMNS = [
    Column("directory"),
    Column("kind"),
    Column("ledgers"),
    Column("fenced"),
    Column("entries"),
    Column("entry_logs"),
    Column("size_bytes", text=format_bytes),
    Column("ledger_id_min"),
    Column("ledger_id_max"),
]
_FINDING_COLUMNS = [
    Column("problem"),
    Column("directory"),
    Column("ledger_id"),
    Column("entry_id"),
    Column("log_id"),
    Column("position"),
    Column("detail"),
]


@app.command("show")
def show(
    ledger: LedgerArgument,
    conf: ConfFile = None,
    ledgers: Ledgers = None,
    indexes: Indexes = None,
    entries: Annotated[
        str | None,
        typer.Option("--entries", metavar="A-B", help="List where these entries are; 0- lists all."),
    ] = None,
    master_key: Annotated[
        bool, typer.Option("--master-key", help="Show the master key in hexadecimal.")
    ] = False,
) -> None:
    """Show what a bookie's index knows of a ledger, one row for each directory that has it.

    With `--entries`, one row for each entry: its entry log, and its position there. Apache
    BookKeeper's `ledger`.
    """
    ledger_id = parse_ledger_id(ledger)
    wanted = None if entries is None else parse_ledger_range(f"{ledger_id}:{entries}")
    _, found = _found(conf, ledgers, indexes)
    rows = [row for index in found if (row := _ledger_row(index, ledger_id, master_key)) is not None]
    if not rows:
        raise NotFoundError(f"no directory of this bookie knows ledger {ledger_id}; see 'bkctl index stats'")
    if wanted is None:
        emit("IndexLedger", rows, _LEDGER_COLUMNS)
        return
    emit("IndexEntryList", _entry_rows(found, ledger_id, wanted.first, wanted.last), _ENTRY_COLUMNS)


@app.command("stats")
def stats(conf: ConfFile = None, ledgers: Ledgers = None, indexes: Indexes = None) -> None:
    """Count the ledgers and entries of each directory, and the entry logs that they are in."""
    _, found = _found(conf, ledgers, indexes)
    with _counting("counting") as counted:
        rows = [_stats_row(index, counted) for index in found]
    emit("IndexStats", rows, _STATS_COLUMNS)


@app.command("verify")
def verify(
    conf: ConfFile = None,
    ledgers: Ledgers = None,
    indexes: Indexes = None,
    ledger: Annotated[
        str | None, typer.Option("--ledger", metavar="LEDGER", help="Only this ledger: 42, 0x2a, or a UUID.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", metavar="ledgers|locations", help="Only the facts of ledgers, or the entries."
        ),
    ] = None,
) -> None:
    """Check that ledgers can be read and that every location points at its entry; list what is wrong.

    Sizes and ids of entries are read, not their contents. Exit code 7 when something is wrong.
    """
    from bkctl.offline.index_check import IndexCheck
    from bkctl.server.storage.fs import OsFs

    if only not in (None, "ledgers", "locations"):
        raise BadInputError(f"cannot check only '{only}'; there are ledgers and locations")
    ledger_id = None if ledger is None else parse_ledger_id(ledger)
    directories, found = _found(conf, ledgers, indexes)
    if ledger_id is not None and not any(_ledger_row(index, ledger_id, False) for index in found):
        raise NotFoundError(f"no directory of this bookie knows ledger {ledger_id}; see 'bkctl index stats'")
    with _counting("checking") as counted:
        check = IndexCheck(OsFs(), ledger_id, bool(directories.users()), counted)
        start = time.monotonic()
        count = 0

        def rows() -> Iterator[Row]:
            nonlocal count
            for finding in _findings(check, directories, found, only):
                count += 1
                yield _finding_row(finding)

        emit("IndexFindingList", rows(), _FINDING_COLUMNS)
    _summary(check, directories, found, count, time.monotonic() - start)
    if count:
        raise typer.Exit(ExitCode.INTEGRITY)


def _found(
    conf: Any, ledgers: list[str] | None, indexes: list[str] | None
) -> "tuple[BookieDirectories, list[Index]]":
    from bkctl.offline.indexes import find_indexes

    directories = bookie_directories(conf, None, ledgers, indexes)
    if not directories.ledgers:
        raise BadInputError("no ledger directories named; give -c FILE, or -l DIR")
    found = find_indexes(directories)
    kinds: dict[Any, set[str]] = {}
    for index in found:
        kinds.setdefault(index.directory, set()).add(index.kind)
    for directory, both in kinds.items():
        if len(both) > 1:
            note(f"{directory} has RocksDB and .idx files; the bookie uses what its ledgerStorageClass says")
    for directory in directories.indexes:
        if directory not in kinds:
            note(f"{directory} has no index: nothing was stored there yet")
    return directories, found


@contextmanager
def _counting(title: str) -> Iterator[Callable[[int], None]]:
    """Yields `counted(entries)`, which shows progress and heeds --timeout. SIGTERM ends in order."""
    timeout_s, start = global_options().timeout_s, time.monotonic()

    def on_termination(_number: int, _frame: Any) -> None:
        raise SystemExit(ExitCode.TERMINATED)  # not an Exception: no handler on the way takes it for one

    with progress(title, None) as update, _handler(on_termination):

        def counted(count: int) -> None:
            passed_s = time.monotonic() - start
            if timeout_s is not None and passed_s > timeout_s:
                raise TimeoutError
            update(count, f"{count:,} entries, {count / max(passed_s, 0.001):,.0f}/s")

        yield counted


@contextmanager
def _handler(on_termination: Callable[[int, Any], None]) -> Iterator[None]:
    previous = {number: signal.signal(number, on_termination) for number in termination_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ledger_row(index: "Index", ledger_id: int, with_key: bool) -> Row | None:
    data = index.ledger(ledger_id)
    with index.locations() as locations:
        last_entry_id = locations.last_entry_id(ledger_id)
    if data is None and last_entry_id < 0:
        return None
    row: dict[str, Any] = {
        "ledger_id": ledger_id,
        "directory": str(index.directory),
        "kind": index.kind,
        "exists": data is not None,
        "fenced": None if data is None else data.fenced,
        "limbo": None if data is None else bool(data.limbo),
        "last_entry_id": last_entry_id,
        "explicit_lac": None if data is None else _explicit_lac(data.explicit_lac),
        "has_master_key": bool(data is not None and data.master_key),
    }
    if with_key:
        row["master_key"] = None if data is None else data.master_key.hex()
    return row


def _explicit_lac(packet: bytes | None) -> int | None:
    """The last add confirmed in the client's packet: ledger id i64, last add confirmed i64, digest."""
    return int.from_bytes(packet[8:16], "big", signed=True) if packet and len(packet) >= 16 else None


def _entry_rows(found: "list[Index]", ledger_id: int, first: int, last: int | None) -> Iterator[Row]:
    from bkctl.offline.indexes import entry_of

    for index in found:
        place = {"directory": str(index.directory), "kind": index.kind}
        with index.locations() as locations:
            for batch in locations.records(ledger_id, first, last):
                for _, entry_id, location in map(entry_of, batch):
                    # Split here and not by the format, which refuses what points at nothing.
                    at = {"log_id": location >> 32, "position": location & 0xFFFF_FFFF}
                    yield {"ledger_id": ledger_id, "entry_id": entry_id} | at | place


def _stats_row(index: "Index", counted: Callable[[int], None]) -> Row:
    ledger_ids: list[int] = []
    ledger_count = fenced = 0
    for ledger_id, data in index.ledgers():
        if isinstance(data, Exception):
            raise data
        assert ledger_id is not None
        ledger_count += 1
        fenced += data.fenced
        ledger_ids = [min([*ledger_ids, ledger_id]), max([*ledger_ids, ledger_id])]
    entries = 0
    logs: set[bytes] = set()
    with index.locations() as locations:
        for batch in locations.records():
            entries += len(batch)
            logs.update({record[:4] for record in batch})
            counted(entries)
    return {
        "directory": str(index.directory),
        "kind": index.kind,
        "ledgers": ledger_count,
        "fenced": fenced,
        "entries": entries,
        "entry_logs": len(logs),
        "size_bytes": index.size_bytes(),
        "ledger_id_min": ledger_ids[0] if ledger_ids else None,
        "ledger_id_max": ledger_ids[-1] if ledger_ids else None,
    }


def _findings(
    check: "IndexCheck", directories: "BookieDirectories", found: "list[Index]", only: str | None
) -> "Iterator[Finding]":
    if only != "locations":
        yield from check.ledgers(found, directory_count=_directory_count(directories))
    if only != "ledgers":
        for index in found:
            yield from check.locations(index)


def _directory_count(directories: "BookieDirectories") -> int:
    """How many ledger directories the bookie has, when they are given as its cookie has them; else 0."""
    from bkctl.errors import CorruptDataError
    from bkctl.formats.cookie import split_directories
    from bkctl.offline.cookies import read_version

    try:
        cookie, _ = read_version(directories.ledgers[0])
        known = split_directories(cookie.ledger_dirs)
    except (OSError, NotFoundError, CorruptDataError) as error:
        note(f"not checked: whether ledgers are in the right directory: {error}")
        return 0
    given = [directory.parent for directory in directories.ledgers]
    if len(known) > 1 and [Path(name).resolve() for name in known] != given:
        note(f"not checked: whether ledgers are in the right directory; the cookie has {', '.join(known)}")
        return 0
    return len(known)


def _finding_row(finding: "Finding") -> Row:
    return {
        "problem": finding.problem,
        "directory": str(finding.directory),
        "ledger_id": finding.ledger_id,
        "entry_id": finding.entry_id,
        "log_id": finding.log_id,
        "position": finding.position,
        "detail": finding.detail,
    }


def _summary(
    check: "IndexCheck", directories: "BookieDirectories", found: "list[Index]", count: int, passed_s: float
) -> None:
    for line in check.unchecked:
        note(f"not checked: {line}")
    for directory in directories.ledgers:
        if (directory / "DIRTY").exists() and not check.in_use:
            note(f"{directory} was not closed in order: entries that only the journal has are not checked")
    limit = global_options().limit
    if limit is not None and count >= limit:
        note(f"stopped after --limit {limit}: what follows was not checked")
    rate = f", {check.entry_count / max(passed_s, 0.001):,.0f}/s" if check.entry_count else ""
    note(
        f"{f'{count} wrong' if count else 'nothing wrong'}: {check.ledger_count} ledgers, "
        f"{check.entry_count} entries, {len(found)} indexes{rate}"
    )
