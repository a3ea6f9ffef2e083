"""Metadata service URIs: our own forms, and clear refusals."""

import pytest

from bkctl.errors import BadInputError
from bkctl.formats.ledger_path import ManagerType
from bkctl.formats.service_uri import Driver, from_zk_servers, parse


def test_sqlite_names_a_file_and_maybe_a_root() -> None:
    uri = parse("sqlite:///var/lib/bkctl/meta data.db")
    assert (uri.driver, uri.path, uri.root, uri.manager) == (
        Driver.SQLITE,
        "/var/lib/bkctl/meta data.db",
        "/ledgers",
        None,
    )
    assert parse("sqlite:///m.db?root=/a/b").root == "/a/b"
    assert parse("sqlite+flat:///m.db").manager is ManagerType.FLAT


def test_memory_has_a_default_root() -> None:
    assert parse("memory://").root == "/ledgers"
    assert parse("memory:///other").root == "/other"


def test_a_trailing_slash_of_the_root_is_dropped() -> None:
    assert parse("zk://h/ledgers/").root == "/ledgers"


def test_pulsars_form_may_have_a_chroot() -> None:
    uri = parse("metadata-store:zk:h1:2181,h2:2181/chroot/")
    assert (uri.servers, uri.root, uri.pulsar) == ("h1:2181,h2:2181/chroot", "/ledgers", True)
    assert uri.manager is ManagerType.HIERARCHICAL


def test_java_keys_become_a_uri() -> None:
    assert from_zk_servers("h1:2181,h2:2181") == "zk+null://h1:2181;h2:2181/ledgers"
    uri = parse(from_zk_servers("h1:2181,h2:2181", "/r", "longhierarchical"))
    assert (uri.servers, uri.root, uri.manager) == ("h1:2181,h2:2181", "/r", ManagerType.LONG_HIERARCHICAL)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "accepted: sqlite://"),
        ("/var/lib/m.db", "accepted: sqlite://"),
        ("etcd://h:2379/x", "'etcd'"),
        ("http://h/ledgers", "'http'"),
        ("zk+ms://h/x", "'ms'"),
        ("zk://h", "no root path"),
        ("zk://h/", "no root path"),
        ("zk://h/a//b", "no root path"),
        ("zk://h/a/../b", "no root path"),
        ("zk://h,,g/a", "no servers"),
        ("zk://user@h/a", "no servers"),
        ("zk://h/a?root=/b", "only sqlite"),
        ("sqlite://host/m.db", "absolute path"),
        ("sqlite:///", "absolute path"),
        ("sqlite:///dir/", "absolute path"),
        ("sqlite:///m.db?rot=/x", "'rot'"),
        ("sqlite:///m.db?root=x", "no root path"),
        ("memory://host", "no server"),
        ("metadata-store:rocksdb:/x", "metadata-store:zk"),
        ("metadata-store:zk:", "no servers"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        parse(text)
