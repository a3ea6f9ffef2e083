"""Which bookie this is: its id and address, and the proof of it, cookies on disk and in metadata.

Source: spec storage section 2 (boot check), spec metadata sections 9 and 10; upstream BookieImpl,
LegacyCookieValidation.
"""

import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from bkctl.config import BookieSettings
from bkctl.errors import BookieStartError, CorruptDataError
from bkctl.formats import bookie_id as bookie_id_format
from bkctl.formats import cookie as cookie_format
from bkctl.formats.cookie import Cookie
from bkctl.metadata.cluster import read_instance_id
from bkctl.metadata.store import MetadataStore
from bkctl.types import Address, BookieId

_OLD_LAYOUT = ("VERSION", ".txn", ".idx", ".log")


def bookie_address(settings: BookieSettings, port: int) -> Address:
    """Where clients find this bookie (spec metadata section 9).

    Raises:
        BookieStartError: the host has no address of its own, or only loopback and that is not allowed.
    """
    host = settings.advertised_address or _own_host(settings)
    try:
        loopback = ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError as error:
        raise BookieStartError(
            f"the address {host} does not resolve: {error}; set advertisedAddress", 1
        ) from error
    if loopback and not settings.allow_loopback:
        raise BookieStartError(
            f"{host} is a loopback address that no other machine reaches; set advertisedAddress, "
            "or allowLoopback=true for a cluster on one machine",
            1,
        )
    return Address(host, port)


def _own_host(settings: BookieSettings) -> str:
    if settings.listening_interface:
        import psutil

        addresses = psutil.net_if_addrs().get(settings.listening_interface, [])
        inet = [a.address for a in addresses if a.family == socket.AF_INET]
        if not inet:
            raise BookieStartError(
                f"listeningInterface {settings.listening_interface} has no IPv4 address", 1
            )
        return inet[0]
    name = socket.getfqdn()
    if settings.use_host_name:
        return name.split(".")[0] if settings.use_short_host_name else name
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise BookieStartError(
            f"this host's name does not resolve: {error}; set advertisedAddress", 1
        ) from error


def bookie_id_of(settings: BookieSettings, address: Address) -> BookieId:
    """The configured id, else host:port. Raises BadInputError for an illegal id."""
    return bookie_id_format.parse(settings.bookie_id or str(address))


def current_directories(directories: Sequence[str]) -> list[Path]:
    """`current/` of each directory, made when missing.

    Raises:
        BookieStartError: a directory cannot be made, or holds data of an older layout.
    """
    made = []
    for directory in directories:
        current = Path(directory, "current")
        try:
            if not current.is_dir():
                if os.path.isdir(directory) and any(
                    name.endswith(_OLD_LAYOUT) for name in os.listdir(directory)
                ):
                    raise BookieStartError(f"{directory} holds data of an older layout: upgrade it first")
                current.mkdir(parents=True)
            if not os.access(current, os.R_OK | os.W_OK | os.X_OK):
                raise BookieStartError(f"{current} cannot be read and written: check its owner and mode")
        except OSError as error:
            raise BookieStartError(f"cannot use directory {directory}: {error.strerror or error}") from error
        made.append(current)
    return made


async def check_cookies(settings: BookieSettings, bookie_id: BookieId, store: MetadataStore) -> None:
    """Refuse to start on directories that are not this bookie's; stamp a new bookie's.

    Raises:
        BookieStartError: what differs, and where.
    """
    master = cookie_format.make_cookie(
        bookie_id,
        settings.journal_directories,
        settings.ledger_directories,
        await read_instance_id(store.tree, store.root),
        settings.index_directories,
    )
    everywhere = list(
        dict.fromkeys(
            current_directories(
                [*settings.journal_directories, *settings.ledger_directories, *settings.index_directories]
            )
        )
    )
    stored = await store.cookies.read(bookie_id)
    if stored is not None:
        _verify(master, stored.value, f"the cookie of {bookie_id} in the metadata store")
    lacking = []
    for current in everywhere:
        version = current / "VERSION"
        if not version.exists():
            lacking.append(current)
            continue
        try:
            on_disk = cookie_format.decode(version.read_bytes())
        except CorruptDataError as error:
            raise BookieStartError(f"{version}: {error}") from error
        _verify(master, on_disk, str(version))
    if not lacking:
        if stored is None and all(os.listdir(current) == ["VERSION"] for current in everywhere):
            await store.cookies.create(bookie_id, master)  # a first start that was interrupted
        elif stored is None:
            raise BookieStartError(
                f"the directories belong to {bookie_id} but the metadata store has no cookie of it: "
                "wrong metadata store, or the cookie was deleted while the data is still here"
            )
        return
    if stored is not None:
        raise BookieStartError(
            f"{lacking[0]} has no VERSION file but {bookie_id} is known: a disk is missing, empty or "
            "foreign; starting would answer for entries that were there"
        )
    for current in lacking:
        if any(current.iterdir()):
            raise BookieStartError(
                f"{current} has no VERSION file but is not empty: not a new bookie's directory"
            )
    _stamp(master, everywhere)
    await store.cookies.create(bookie_id, master)


def _verify(master: Cookie, cookie: Cookie, where: str) -> None:
    found = cookie_format.differences(master, cookie, allow_expansion=False)
    if found:
        raise BookieStartError(f"{where} is not of this bookie: {'; '.join(map(str, found))}")


def _stamp(master: Cookie, directories: Sequence[Path]) -> None:
    data = cookie_format.encode(master)
    for current in directories:
        with open(current / "VERSION", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(current, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
