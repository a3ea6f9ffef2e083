"""Settings: Java's files are read as Java reads them, and every bad value has one clear answer."""

from pathlib import Path

import pytest

from bkctl.config import BookieSettings, load_bookie_settings, parse_properties
from bkctl.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("bookiePort=3181", "bookiePort", "3181"),
        ("  bookiePort : 3181 ", "bookiePort", "3181"),
        ("bookiePort 3181", "bookiePort", "3181"),
        ("# a comment\n! another\nbookieId=a", "bookieId", "a"),
        ("ledgerDirectories=/a,\\\n    /b", "ledgerDirectories", "/a,/b"),
        ("a\\ key=v", "a key", "v"),
        ("k=tab\\there", "k", "tab\there"),
        ("k=\\u00e9", "k", "é"),
        ("k=back\\\\slash", "k", "back\\slash"),
        ("k=1\nk=2", "k", "2"),
        ("empty=", "empty", ""),
        ("zk=zk+null://a:1;b:2/ledgers", "zk", "zk+null://a:1;b:2/ledgers"),
    ],
)
def test_properties_are_read_as_java_reads_them(text: str, key: str, value: str) -> None:
    assert parse_properties(text)[key][0] == value


def test_a_file_then_overrides(tmp_path: Path) -> None:
    conf = tmp_path / "bk_server.conf"
    conf.write_text("bookiePort=4000\njournalDirectory=/j\nledgerDirectories=/l1,/l2\n")
    settings = load_bookie_settings(conf, {"bookiePort": "5000"})
    assert settings.port == 5000
    assert settings.journal_directories == ("/j",)
    assert settings.ledger_directories == ("/l1", "/l2")
    assert settings.warnings == ()


def test_defaults_are_javas() -> None:
    settings = BookieSettings()
    assert (settings.port, settings.frame_bytes_max, settings.journal_backups_max) == (3181, 5 << 20, 5)


def test_an_unknown_key_is_a_warning_with_the_nearest_known_one(tmp_path: Path) -> None:
    conf = tmp_path / "c.conf"
    conf.write_text("bookieprot=1\n\nauditorPeriodicCheckInterval=5\nstorageserver.grpc.port=4181\n")
    settings = load_bookie_settings(conf, {})
    assert settings.warnings == (f"{conf}:1: unknown key bookieprot is ignored; did you mean bookiePort?",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bookiePort": "many"}, "bookiePort needs a value of type int"),
        ({"bookiePort": "70000"}, "outside 0 to 65535"),
        ({"journalSyncData": "perhaps"}, "type bool"),
        ({"ledgerDirectories": "/a,/b", "indexDirectories": "/i"}, "as many directories"),
        ({"ledgerDirectories": "/a,/a"}, "named twice"),
        ({"diskUsageThreshold": "0.5"}, "diskUsageWarnThreshold"),
        ({"journalAlignmentSize": "700"}, "multiple of 512"),
    ],
)
def test_a_bad_value_is_one_line(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        load_bookie_settings(None, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "reason"),
    [("tlsProviderFactoryClass", "TLS"), ("bookieAuthProviderFactoryClass", "authentication")],
)
def test_protection_that_is_not_there_refuses_a_start_but_not_a_look_at_files(key: str, reason: str) -> None:
    settings = load_bookie_settings(None, {key: "x", "bookiePort": "3182"})
    [refusal] = settings.refusals
    assert f"{key}: {reason} is not supported yet" in refusal
    assert settings.port == 3182
    assert load_bookie_settings(None, {key: ""}).refusals == ()


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"nowhere\.conf.*-c"):
        load_bookie_settings(tmp_path / "nowhere.conf", {})


def test_the_uri_is_composed_from_zk_servers() -> None:
    settings = load_bookie_settings(None, {"zkServers": "a:1,b:2", "zkLedgersRootPath": "/x"})
    assert settings.metadata_uri == "zk+null://a:1;b:2/x"
