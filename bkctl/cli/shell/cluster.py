"""The old commands about bookies and the cluster: listbookies, bookieinfo, cookie_get, whatisinstanceid."""

import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from bkctl.cli.bookie import bookie_rows, list_bookies
from bkctl.cli.cluster import identity_row, info
from bkctl.cli.confirm import note
from bkctl.cli.context import metadata_store
from bkctl.cli.event_loop import run
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.render import Column, Row, emit, format_bytes
from bkctl.cli.shell.settings import cluster_uri, new_form
from bkctl.cli.shell.text import bookie_text, bytes_text
from bkctl.errors import BkctlError, NotFoundError
from bkctl.formats.bookie_id import parse as parse_bookie_id
from bkctl.formats.bookie_id import spelled_address
from bkctl.types import Address, BookieId

if TYPE_CHECKING:
    from bkctl.client.bookkeeper import BookKeeper
    from bkctl.formats.cookie import Cookie

_HEADS = {"rw": "ReadWrite Bookies :", "ro": "Readonly Bookies :", "all": "All Bookies :"}


def listbookies(
    readwrite: Annotated[bool, typer.Option("-rw", "--readwrite", help="Those that take adds.")] = False,
    readonly: Annotated[bool, typer.Option("-ro", "--readonly", help="Those that only serve reads.")] = False,
    everything: Annotated[bool, typer.Option("-a", "--all", help="All that have a cookie.")] = False,
    host_names: Annotated[bool, typer.Option("-h", "--hostnames", help="No effect.")] = False,
) -> None:
    """List the bookies; exactly one of -rw, -ro and -a says which."""
    flags = {"rw": readwrite, "ro": readonly, "all": everything}
    chosen = [name for name, flag in flags.items() if flag]
    if len(chosen) != 1:
        raise click.UsageError(
            "give exactly one of -rw, -ro and -a; usage: bkctl shell listbookies -rw | -ro | -a",
            ctx=click.get_current_context(),
        )
    (which,) = chosen
    uri = cluster_uri()
    if new_form():
        list_bookies(writable=readwrite, readonly=readonly)
        return
    rows = run(bookie_rows(uri, {"rw", "ro", "lost"} if which == "all" else {which}))
    lines = run(_bookie_texts([row for row in rows if which != "all" or row["cookie"]]))
    print("\n".join([_HEADS[which], *lines]) if lines else "No bookie exists!")


async def _bookie_texts(rows: list[Row]) -> list[str]:
    import asyncio

    addresses = [spelled_address(row.get("address") or row["bookie_id"]) for row in rows]
    return await asyncio.gather(
        *(_bookie_text(row["bookie_id"], address) for row, address in zip(rows, addresses, strict=True))
    )


async def _bookie_text(bookie_id: BookieId, address: Address | None) -> str:
    ip, host_name = (None, "") if address is None else await _ip_and_name(address.host)
    return bookie_text(bookie_id, address, ip, host_name)


async def _ip_and_name(host: str) -> tuple[str | None, str]:
    """As the resolver of this machine tells; an address that has no name is its own."""
    import asyncio

    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return None, host
    ip = str(next((a for family, _, _, _, (a, *_) in found if family == socket.AF_INET), found[0][4][0]))
    if ip != host:
        return ip, host
    try:
        return ip, (await loop.getnameinfo((ip, 0)))[0]
    except OSError:
        return ip, ip


def bookieinfo() -> None:
    """Show free and total disk space of every registered bookie; exit code 9 if some do not tell."""
    rows = run(_disk_rows(cluster_uri()))
    told = [row for row in rows if row["error"] is None]
    if new_form():
        sizes = [Column("free_bytes", text=format_bytes), Column("total_bytes", text=format_bytes)]
        columns = [Column("bookie_id"), Column("state"), *sizes, Column("error", wide=True)]
        emit("BookieInfoList", [{k: v for k, v in row.items() if k != "text"} for row in rows], columns)
    else:
        for row in rows:
            if row["error"] is not None:
                note(f"{row['bookie_id']}: {row['error']}")
        print("\n".join(_disk_lines(told)))
    if len(told) < len(rows):
        raise typer.Exit(ExitCode.PARTIAL if told else ExitCode.UNREACHABLE)


def _disk_lines(rows: list[Row]) -> list[str]:
    if not rows:
        return ["Failed to retrieve bookie information from any of the bookies"]
    free, total = (sum(row[key] for row in rows) for key in ("free_bytes", "total_bytes"))
    return [
        "Free disk space info:",
        *(
            f"{row['text']}: \tFree: {bytes_text(row['free_bytes'])}\tTotal: {bytes_text(row['total_bytes'])}"
            for row in rows
        ),
        f"Total free disk space in the cluster:\t{bytes_text(free)}",
        f"Total disk capacity in the cluster:\t{bytes_text(total)}",
    ]


async def _disk_rows(uri: str) -> list[Row]:
    import asyncio

    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri) as client:
        registration = client.metadata.registration
        states = dict.fromkeys(await registration.readonly(), "ro")
        states |= dict.fromkeys(await registration.writable(), "rw")
        return await asyncio.gather(*(_disk_row(client, b, states[b]) for b in sorted(states)))


async def _disk_row(client: "BookKeeper", bookie_id: BookieId, state: str) -> Row:
    row: dict[str, Any] = {"bookie_id": bookie_id, "state": state, "free_bytes": None, "total_bytes": None}
    row |= {"error": None, "text": bookie_id}
    try:
        address = await client.metadata.registration.resolve(bookie_id)
        row["text"] = await _bookie_text(bookie_id, address)
        row["total_bytes"], row["free_bytes"] = await client.pool.channel(bookie_id).bookie_info()
    except BkctlError as error:
        row["error"] = str(error)
    return row


def whatisinstanceid() -> None:
    """Show the cluster's instance id and metadata URI."""
    uri = cluster_uri()
    if new_form():
        info()
        return
    row = run(identity_row(uri))
    if row["instance_id"] is None:
        raise NotFoundError(f"the cluster at {row['metadata_uri']} has no instance id")
    print(f"Metadata Service Uri: {row['metadata_uri']} InstanceId: {row['instance_id']}")


def cookie_get(bookie: Annotated[str, typer.Argument(metavar="BOOKIE", help="Bookie id.")]) -> None:
    """Show a bookie's cookie as it is stored."""
    from bkctl.cli.cookie import show
    from bkctl.formats.cookie import encode

    bookie_id, uri = parse_bookie_id(bookie), cluster_uri()
    if new_form():
        show(bookie_id)
        return
    text = encode(run(_cookie(uri, bookie_id))).decode()
    sys.stdout.write(f"Cookie for bookie '{bookie_id}' is:\n---\n{text}\n---\n")


async def _cookie(uri: str, bookie_id: BookieId) -> "Cookie":
    async with metadata_store(uri) as store:
        found = await store.cookies.read(bookie_id)
        if found is None:
            raise NotFoundError(f"Cookie not found for bookie '{bookie_id}'")
        return found.value


COMMANDS = {command.__name__: command for command in (listbookies, bookieinfo, whatisinstanceid, cookie_get)}
