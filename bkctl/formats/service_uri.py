"""Metadata service URIs: which store, which servers, which root.

    sqlite:///abs/path.db[?root=/ledgers]               one machine
    zk+hierarchical://h1:2181;h2:2181/ledgers           ZooKeeper; also zk+longhierarchical, zk+flat,
                                                        zk+null and zk (manager taken from LAYOUT)
    metadata-store:zk:h1:2181,h2:2181[/chroot]          Pulsar's spelling; root is /ledgers
    memory://[/ledgers]                                 tests

Source: spec metadata sections 1 and 19; upstream ZKMetadataDriverBase, AbstractConfiguration.
"""

import enum
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from bkctl.errors import BadInputError
from bkctl.formats.ledger_path import ManagerType

DEFAULT_ROOT = "/ledgers"

_ACCEPTED = "sqlite:///abs/path.db, zk+hierarchical://h1:2181;h2:2181/ledgers, metadata-store:zk:h1:2181"
_PULSAR_SCHEME = "metadata-store:"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.+-]*)://([^/?#]*)([^?#]*)(?:\?(.*))?")
_SERVER = re.compile(r"[A-Za-z0-9._\-\[\]:]+")


class Driver(enum.Enum):
    MEMORY = "memory"
    SQLITE = "sqlite"
    ZOOKEEPER = "zk"


_MANAGERS = {
    "hierarchical": ManagerType.HIERARCHICAL,
    "longhierarchical": ManagerType.LONG_HIERARCHICAL,
    "flat": ManagerType.FLAT,
    "null": None,
}


@dataclass(frozen=True, slots=True)
class ServiceUri:
    """A parsed URI.

    `servers` is ZooKeeper's connect string, chroot included; `path` the SQLite file. `manager` None:
    as LAYOUT says. `pulsar`: written by Pulsar's driver, which keeps no LAYOUT.
    """

    text: str
    driver: Driver
    root: str
    manager: ManagerType | None = None
    servers: str = ""
    path: str = ""
    pulsar: bool = False


def parse(text: str) -> ServiceUri:
    """Raises BadInputError naming what is accepted."""
    if text.startswith(_PULSAR_SCHEME):
        return _parse_pulsar(text)
    match = _SCHEME.fullmatch(text)
    if match is None:
        raise BadInputError(f"metadata URI {text!r} has no known form; accepted: {_ACCEPTED}")
    scheme, authority, path, query = match[1].lower(), match[2], match[3], match[4]
    driver_name, plus, manager_name = scheme.partition("+")
    try:
        driver = Driver(driver_name)
    except ValueError:
        raise BadInputError(
            f"metadata URI scheme {driver_name!r} is not known; accepted: {_ACCEPTED}"
        ) from None
    if plus and manager_name not in _MANAGERS:
        raise BadInputError(
            f"ledger manager {manager_name!r} in {text!r} is not known; accepted: {', '.join(_MANAGERS)}"
        )
    manager = _MANAGERS[manager_name] if plus else None
    if query and driver is not Driver.SQLITE:
        raise BadInputError(f"metadata URI {text!r}: only sqlite takes '?root=…'")
    match driver:
        case Driver.ZOOKEEPER:
            servers = _servers(text, authority)
            return ServiceUri(text, driver, _root(text, path), manager, servers=servers)
        case Driver.SQLITE:
            root, file = _sqlite_root(text, query), _sqlite_path(text, authority, path)
            return ServiceUri(text, driver, root, manager, path=file)
        case Driver.MEMORY:
            if authority:
                raise BadInputError(f"metadata URI {text!r}: memory:// names no server")
            return ServiceUri(text, driver, _root(text, path or DEFAULT_ROOT), manager)


def from_zk_servers(zk_servers: str, root: str = DEFAULT_ROOT, manager_name: str = "null") -> str:
    """The URI that stands for Java's keys zkServers, zkLedgersRootPath and ledgerManagerType."""
    return f"zk+{manager_name}://{zk_servers.replace(',', ';')}{root}"


def _parse_pulsar(text: str) -> ServiceUri:
    store = text.removeprefix(_PULSAR_SCHEME)
    kind, _, connect = store.partition(":")
    if kind != "zk":
        raise BadInputError(f"metadata URI {text!r}: of Pulsar's stores only {_PULSAR_SCHEME}zk:… is known")
    authority, slash, chroot = connect.partition("/")
    servers = _servers(text, authority)
    if chroot.strip("/"):
        servers += slash + chroot.strip("/")
    return ServiceUri(
        text, Driver.ZOOKEEPER, DEFAULT_ROOT, ManagerType.HIERARCHICAL, servers=servers, pulsar=True
    )


def _servers(text: str, authority: str) -> str:
    servers = authority.replace(";", ",").split(",")
    if not all(_SERVER.fullmatch(server) for server in servers):
        raise BadInputError(
            f"metadata URI {text!r} names no servers; write zk://host1:2181;host2:2181/ledgers"
        )
    return ",".join(servers)


def _root(text: str, path: str) -> str:
    root = path.rstrip("/")
    if not root.startswith("/") or any(part in ("", ".", "..") for part in root[1:].split("/")):
        raise BadInputError(f"metadata URI {text!r} names no root path; write …{DEFAULT_ROOT} at its end")
    return root


def _sqlite_path(text: str, authority: str, path: str) -> str:
    if authority or not path.strip("/") or path.endswith("/"):
        raise BadInputError(f"metadata URI {text!r}: write sqlite:/// and the absolute path of a file")
    return "/" + path.lstrip("/")  # four slashes are common for an absolute path


def _sqlite_root(text: str, query: str | None) -> str:
    options = dict(parse_qsl(query or "", keep_blank_values=True))
    root = options.pop("root", DEFAULT_ROOT)
    if options:
        raise BadInputError(
            f"metadata URI {text!r}: unknown option {next(iter(options))!r}; only root is known"
        )
    return _root(text, root)
