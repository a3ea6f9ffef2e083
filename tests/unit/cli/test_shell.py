"""`bkctl shell`: the old command lines, what they print, and what of bookkeeper shell is not here."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from bkctl.cli.exit_codes import ExitCode, java_shell_code
from bkctl.cli.shell.flags import respelled
from bkctl.cli.shell.names import NEW_NAMES
from bkctl.cli.shell.record_text import entry_lines
from bkctl.cli.shell.settings import ShellSettings
from bkctl.cli.shell.text import bookie_text, bytes_text, netty_lines, payload_lines
from bkctl.formats import ledger_metadata
from bkctl.formats.cookie import make_cookie
from bkctl.metadata.store import MetadataStore
from bkctl.types import Address, BookieId, EntryId, LedgerId, LedgerMetadata, Segment
from tests.shared_data import fixture_path
from tests.unit.cli.conftest import Bkctl, Result
from tests.unit.cli.test_metadata_commands import ENSEMBLE, in_store, items, registered_bookies

HERE = [
    "listbookies", "bookieinfo", "whatisinstanceid", "cookie_get", "listledgers", "ledgermetadata",
    "readledger", "readlog", "readlogmetadata", "readjournal", "lastmark", "listfilesondisc", "ledger",
]  # fmt: skip
MINE = BookieId("10.0.0.1:3181")


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BOOKIE_CONF", "LOCALBOOKIES_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)


def conf_for(tmp_path: Path, **keys: object) -> str:
    path = tmp_path / "bk_server.conf"
    path.write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
    return str(path)


# -- names ------------------------------------------------------------------------------------------


def test_every_java_command_is_here_or_has_an_answer(bkctl: Bkctl) -> None:
    assert len(NEW_NAMES) == 47
    rows = {row["command"]: row for row in items(bkctl, "shell", "help")}
    assert [name for name, row in rows.items() if row["here"]] == sorted(HERE)
    for name in NEW_NAMES.keys() - set(HERE):
        result = bkctl("shell", name, "-n", "--force", "x")
        assert (result.code, result.out, result.err.count("\n")) == (ExitCode.USAGE, "", 1)
        new_name = rows[name]["new_name"]
        if new_name is None:
            assert result.err == f"bkctl: bkctl does not have '{name}' of bookkeeper shell yet\n"
        else:
            assert f"'{name}' of bookkeeper shell is 'bkctl {new_name}' now" in result.err


def test_every_new_name_that_is_told_exists(bkctl: Bkctl) -> None:
    told = {row["new_name"] for row in items(bkctl, "shell", "help")} - {None}
    assert len(told) > 15
    for name in told:
        assert f"see 'bkctl {name} --help'" in bkctl(*name.split(), "--nonsense").err


def test_every_command_here_has_a_new_name(bkctl: Bkctl) -> None:
    assert all(row["new_name"] for row in items(bkctl, "shell", "help") if row["here"])


def test_an_unknown_command_names_the_nearest(bkctl: Bkctl) -> None:
    for line in ("shell listbookie", "shell help listbookie"):
        result = bkctl(*line.split())
        assert result.code == ExitCode.USAGE
        assert "did you mean 'bkctl shell listbookies'?" in result.err


def test_help_of_a_command_shows_its_old_flags(bkctl: Bkctl) -> None:
    for words in (
        ["help", "readledger"],
        ["readledger", "-help"],
        ["readledger", "--help"],
        ["readledger", "-h"],
    ):
        result = bkctl("shell", *words)
        assert result.code == 0
        assert "-l LEDGER [-fe ENTRY] [-le ENTRY] [-m] [-r] [-b BOOKIE]" in " ".join(result.out.split())
    assert items(bkctl, "shell", "help", "deleteledger") == [
        {"command": "deleteledger", "here": False, "new_name": "ledger delete"}
    ]


def test_the_new_name_is_told_once_unless_quiet(bkctl: Bkctl, uri: str) -> None:
    assert bkctl("shell", "listledgers", "-u", uri).err == "'bkctl ledger list' does this now\n"
    assert bkctl("shell", "-q", "listledgers", "-u", uri).err == ""
    assert bkctl("shell", "listledgers", "-u", uri, "--quiet").err == ""


# -- flags ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("listbookies", "exactly one of -rw, -ro and -a"),
        ("listbookies -rw -ro", "exactly one of -rw, -ro and -a"),
        ("listbookies -x", "no such flag '-x'"),
        ("bookieinfo -a", "no such flag '-a'"),
        ("whatisinstanceid now", "unexpected extra argument (now)"),
        ("cookie_get", "missing argument 'BOOKIE'"),
        ("listledgers -bookieid", "flag '-bookieid' needs a value"),
        ("listledgers -meta=yes", "flag '--meta' takes no value"),
        ("ledgermetadata", "missing option '-l'"),
        ("ledgermetadata -l -update", "flag '-l' needs a value"),
        ("readledger -m", "missing option '-l'"),
        ("readledger -bookieid b:1 -l 1", "no such flag '-bookieid'"),
        ("readledger -l 1 -fe -1", "-fe"),
        ("readledger -l 1 -le x", "-le"),
        ("readlog", "missing argument 'LOG'"),
        ("readlog -e 1 0", "take -l, or -l and -e, or -sp, or -sp and -ep"),
        ("readlog -ep 1 0", "take -l, or -l and -e, or -sp, or -sp and -ep"),
        ("readlog -l 1 -sp 1 0", "take -l, or -l and -e, or -sp, or -sp and -ep"),
        ("readlog -sp 5 -ep 4 0", "-sp is behind -ep"),
        ("readlogmetadata", "missing argument 'LOG'"),
        ("readjournal -m", "missing argument 'JOURNAL'"),
        ("lastmark -x", "no such flag '-x'"),
        ("listfilesondisc -all", "no such flag '-all'"),
        ("ledger", "missing argument 'LEDGER'"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_usage(bkctl: Bkctl, line: str, reason: str) -> None:
    result = bkctl("shell", *line.split())
    assert (result.code, result.out, result.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert reason in result.err
    assert f"bkctl shell {line.split()[0]}" in result.err


@pytest.mark.parametrize(
    "line",
    [
        "-m -bookieid {b}",
        "-meta --bookieid {b}",
        "--m -bookieid={b}",
        "-bookieid {b} --meta",
        "-bookieid {b} -m -vv",
    ],
)
def test_one_or_two_hyphens_before_short_and_long_names(bkctl: Bkctl, uri: str, line: str) -> None:
    create(uri, ledger_on(MINE))
    result = bkctl("shell", "-q", "listledgers", "-u", uri, *line.format(b=MINE).split())
    assert result.code == 0, result.err
    assert result.out.startswith("ledgerID: 0\nLedgerMetadata{")


def test_short_flags_are_not_joined() -> None:
    """Click reads `-bookieid b` as `-b ookieid b`, and `-lm` as `-l m`."""

    @click.command()
    @click.option("-b", "--bookie")
    @click.option("-l", "--ledgerid")
    def command() -> None: ...

    with click.Context(command) as ctx:
        for words in (["-bookieid", "b"], ["-lm"], ["--bookieid", "b"]):
            with pytest.raises(click.UsageError, match="no such flag"):
                respelled(command, ctx, words)
        assert respelled(command, ctx, ["-bookie", "-1", "x", "-"]) == ["--bookie", "-1", "x", "-"]
        assert respelled(command, ctx, ["--", "-bookieid"]) == ["--", "-bookieid"]


# -- what stands before the command -----------------------------------------------------------------


def test_the_configuration_names_the_cluster(
    bkctl: Bkctl, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(uri, ledger_on(MINE))
    conf = conf_for(tmp_path, metadataServiceUri=uri)
    other = f"sqlite://{tmp_path}/none.db"
    expected = "ledgerID: 0\n"
    assert bkctl("shell", "-conf", conf, "listledgers").out == expected
    monkeypatch.setenv("LOCALBOOKIES_CONFIG_DIR", str(tmp_path))
    shutil.copy(conf, tmp_path / "127.0.0.1:3181.conf")
    shutil.copy(conf, tmp_path / "baseconf.conf")
    assert bkctl("shell", "-localbookie", "127.0.0.1:3181", "listledgers").out == expected
    assert bkctl("shell", "-localbookie", "listledgers").out == expected
    monkeypatch.setenv("BKCTL_METADATA_URI", other)
    assert bkctl("shell", "-conf", conf, "listledgers").out == expected
    assert bkctl("shell", "-conf", conf, "listledgers", "-u", other).code == ExitCode.NOT_FOUND
    monkeypatch.setenv("BOOKIE_CONF", conf)
    assert bkctl("shell", "listledgers").code == ExitCode.NOT_FOUND  # BKCTL_* comes before BOOKIE_CONF
    monkeypatch.delenv("BKCTL_METADATA_URI")
    assert bkctl("shell", "listledgers").out == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-conf none.conf -localbookie listledgers", "exclude each other"),
        ("-conf none.conf listledgers", "none.conf"),
        ("-conf", "flag '-conf' needs a value"),
        ("-ledgeridformat roman listledgers", "roman"),
        ("-entryformat yaml listledgers", "yaml"),
        ("-nonsense listledgers", "no such flag '-nonsense'"),
        ("-localbookie none:1 lastmark", "none:1.conf"),
    ],
)
def test_a_wrong_flag_before_the_command_is_one_line(bkctl: Bkctl, line: str, reason: str) -> None:
    result = bkctl("shell", *line.split())
    assert (result.code, result.out, result.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert reason in result.err


@pytest.mark.parametrize("line", ["lastmark", "readlog 0", "readlogmetadata 0", "readjournal 1", "ledger 0"])
@pytest.mark.parametrize("form", [[], ["-o", "json"]])
def test_without_a_configuration_a_disk_is_not_guessed(bkctl: Bkctl, line: str, form: list[str]) -> None:
    result = bkctl("shell", *line.split(), *form)
    assert result.code == ExitCode.USAGE
    assert "give -conf FILE before the command, or set BOOKIE_CONF" in result.err


@pytest.mark.parametrize(
    ("form", "text"), [("long", "26"), ("hex", "1a"), ("uuid", "00000000-0000-0000-0000-00000000001a")]
)
def test_ledger_ids_are_read_and_written_in_the_format(bkctl: Bkctl, uri: str, form: str, text: str) -> None:
    create(uri, ledger_on(MINE), LedgerId(26))
    before = ["shell", "-ledgeridformat", form]
    assert bkctl(*before, "listledgers", "-u", uri).out == f"ledgerID: {text}\n"
    assert bkctl(*before, "ledgermetadata", "-l", text, "-u", uri).out.startswith(f"ledgerID: {text}\n")
    assert bkctl(*before, "ledgermetadata", "-l", "no-id", "-u", uri).code == ExitCode.USAGE


def test_java_exit_makes_every_failure_255(bkctl: Bkctl, uri: str) -> None:
    assert bkctl("shell", "--java-exit", "listledgers", "-u", uri).code == 0
    for line in ("ledgermetadata -l 7", "ledgermetadata", "metaformat", "cookie_get nobody:1"):
        assert bkctl("shell", "--java-exit", *line.split(), "-u", uri).code == 255
        assert 0 < bkctl("shell", *line.split(), "-u", uri).code < 255
    assert [java_shell_code(code) for code in (0, 1, 124, 130, 141, 143)] == [0, 255, 255, 130, 141, 143]


# -- online -----------------------------------------------------------------------------------------


def ledger_on(*bookies: BookieId, closed_at: int = 9, **changes: Any) -> LedgerMetadata:
    metadata = LedgerMetadata(len(bookies), 1, 1, (Segment(EntryId(0), bookies),), password=b"pw", **changes)
    return metadata.with_closed(EntryId(closed_at), 70)


def create(uri: str, metadata: LedgerMetadata, ledger_id: LedgerId | None = None) -> None:
    async def work(store: MetadataStore) -> None:
        await store.ledgers.create(metadata, ledger_id, creator_token=1)

    in_store(uri, work)


def test_bookies_by_state(bkctl: Bkctl, uri: str) -> None:
    with registered_bookies(uri):
        found = {
            flag: bkctl("shell", "listbookies", flag, "-h", "-u", uri).out for flag in ("-rw", "-ro", "-a")
        }
        new = items(bkctl, "shell", "listbookies", "-ro", "-u", uri)
    one, two, three = ENSEMBLE
    assert found["-rw"].startswith(f"ReadWrite Bookies :\nBookieID:{one}, IP:10.0.0.1, Port:3181, Hostname:")
    assert found["-ro"].startswith(f"Readonly Bookies :\nBookieID:{two}, IP:10.0.0.2, Port:3181, Hostname:")
    lines = found["-a"].splitlines()
    assert (lines[0], [line.partition(",")[0] for line in lines[1:]]) == (
        "All Bookies :",
        [f"BookieID:{bookie_id}" for bookie_id in (one, two, three)],
    )
    assert [row["bookie_id"] for row in new] == [two]


def test_no_bookie_is_said_in_words(bkctl: Bkctl, uri: str) -> None:
    assert bkctl("shell", "listbookies", "-rw", "-u", uri).out == "No bookie exists!\n"
    result = bkctl("shell", "bookieinfo", "-u", uri)
    assert result.out == "Failed to retrieve bookie information from any of the bookies\n"


def test_a_bookie_of_an_unknown_place_is_listed_as_unknown() -> None:
    assert bookie_text("b1", None, None, "") == "BookieID:b1, IP:UNKNOWN, Port:0, Hostname:UNKNOWN"
    assert bookie_text("b1", Address("gone.example", 3181), None, "gone.example") == (
        "BookieID:b1, IP:UNKNOWN, Port:3181, Hostname:gone.example"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1000(1KB)"), (1500, "1500(1.5KB)"), (1999, "1999(1.999KB)"),
        (1999999, "1999999(1.999MB)"), (74782113792, "74782113792(74.782GB)"),
        (5 * 10**15, "5000000000000000(5000TB)"),
    ],
)  # fmt: skip
def test_sizes_are_cut_to_three_digits(count: int, text: str) -> None:
    """Source: upstream InfoCommand.getReadable, DecimalFormat "#.###" rounding down."""
    assert bytes_text(count) == text


def test_ledgers_of_a_bookie(bkctl: Bkctl, uri: str) -> None:
    """A bookie in an ensemble may have no entry: the ledger ended before its turn came."""
    one, two, three = ENSEMBLE
    create(uri, ledger_on(one, two))
    create(uri, ledger_on(one, two, three, closed_at=0))
    create(uri, ledger_on(three, closed_at=-1))
    create(uri, LedgerMetadata(1, 1, 1, (Segment(EntryId(0), (three,)),)))

    def listed(bookie_id: BookieId) -> str:
        return bkctl("shell", "listledgers", "-bookieid", bookie_id, "-u", uri).out

    assert [listed(b) for b in (one, two, three)] == [
        "ledgerID: 0\nledgerID: 1\n",
        "ledgerID: 0\n",
        "ledgerID: 3\n",
    ]
    assert [row["ledger_id"] for row in items(bkctl, "ledger", "list", "--bookie", two, "-u", uri)] == [0]
    rows = items(bkctl, "shell", "listledgers", "-bookieid", three, "-u", uri)
    assert [row["ledger_id"] for row in rows] == [3]


def test_metadata_text_of_an_open_ledger_has_no_end_and_sorts_its_custom_metadata(
    bkctl: Bkctl, uri: str
) -> None:
    segments = (Segment(EntryId(0), ENSEMBLE[:1]), Segment(EntryId(5), ENSEMBLE[1:2]))
    create(uri, LedgerMetadata(1, 1, 1, segments, password=b"", custom_metadata={"b": b"\xff", "a": b""}))
    assert bkctl("shell", "ledgermetadata", "-l", "0", "-u", uri).out.splitlines() == [
        "ledgerID: 0",
        "LedgerMetadata{formatVersion=3, ensembleSize=1, writeQuorumSize=1, ackQuorumSize=1, state=OPEN, "
        "digestType=CRC32C, password=base64:, ensembles={0=[10.0.0.1:3181], 5=[10.0.0.2:3181]}, "
        "customMetadata={a=base64:, b=base64:/w==}}",
    ]


def test_metadata_is_dumped_to_a_file_as_it_is_stored(bkctl: Bkctl, uri: str, tmp_path: Path) -> None:
    metadata = ledger_on(MINE)
    create(uri, metadata)
    file = tmp_path / "dump"
    words = ["shell", "-q", "ledgermetadata", "-l", "0", "-u", uri, "-dumptofile"]
    assert bkctl(*words, str(file)) == Result(0, "", "")
    assert replace(ledger_metadata.decode(file.read_bytes()), creator_token=0) == metadata
    (tmp_path / "dump-directory").mkdir()
    for wrong in (tmp_path / "none" / "dump", tmp_path / "dump-directory", "."):
        result = bkctl(*words, str(wrong))
        assert (result.code, result.err.count("\n")) == (ExitCode.USAGE, 1)
    assert sorted(path.name for path in tmp_path.glob("dump*")) == ["dump", "dump-directory"]


@pytest.mark.parametrize("flags", ["-restorefromfile x", "-update"])
def test_metadata_is_not_restored_yet(bkctl: Bkctl, uri: str, flags: str) -> None:
    create(uri, ledger_on(MINE))
    result = bkctl("shell", "ledgermetadata", "-l", "0", *flags.split(), "-u", uri)
    assert (result.code, result.err.count("\n")) == (ExitCode.USAGE, 1)
    assert "does not have 'ledgermetadata -restorefromfile'" in result.err


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("listbookies -a", "BookieList"), ("bookieinfo", "BookieInfoList"), ("whatisinstanceid", "Cluster"),
        ("listledgers", "LedgerList"), ("ledgermetadata -l 0", "Ledger"), ("cookie_get {b}", "Cookie"),
    ],
)  # fmt: skip
def test_online_commands_have_the_new_forms(bkctl: Bkctl, uri: str, line: str, kind: str) -> None:
    create(uri, ledger_on(MINE))

    async def add_cookie(store: MetadataStore) -> None:
        await store.cookies.create(MINE, make_cookie(MINE, ["/journal"], ["/ledgers"]))

    in_store(uri, add_cookie)
    result = bkctl("shell", *line.format(b=MINE).split(), "-u", uri, "-o", "json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["kind"] == kind
    assert (
        bkctl("shell", *line.format(b=MINE).split(), "-u", uri, "--columns", "nonsense").code
        == ExitCode.USAGE
    )


def test_forcing_recovery_needs_somebody_who_wants_it(bkctl: Bkctl, uri: str) -> None:
    create(uri, ledger_on(MINE))
    refused = bkctl("shell", "readledger", "-l", "0", "-r", "-u", uri)
    assert (refused.code, refused.err.count("\n")) == (ExitCode.REFUSED, 1)
    read_only = bkctl("shell", "readledger", "-l", "0", "-r", "-u", uri, "--yes", "--read-only")
    assert (read_only.code, "is read-only here" in read_only.err) == (ExitCode.REFUSED, True)


# -- disks ------------------------------------------------------------------------------------------


@pytest.fixture
def conf(tmp_path: Path) -> str:
    """The configuration of a bookie whose disks Apache's wrote, copied."""
    shutil.copytree(fixture_path("bookies-clean", "b1"), tmp_path / "b1")
    return conf_for(
        tmp_path, journalDirectories=tmp_path / "b1/journal", ledgerDirectories=tmp_path / "b1/ledgers"
    )


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("lastmark", "JournalMarkList"), ("readlog 0", "EntryLogEntryList"),
        ("readlog -m -sp 1 -ep 1100 0.log", "EntryLogEntryList"), ("readlogmetadata 0", "EntryLogLedgerList"),
        ("readjournal 1a2054c4bd8.txn", "JournalRecordList"),
        ("readjournal -m 1795385215960", "JournalRecordList"), ("listfilesondisc -txn", "BookieFileList"),
        ("listfilesondisc -txn -log", "BookieFileList"), ("ledger 0", "IndexEntryList"),
        ("ledger -m 0", "IndexLedger"),
    ],
)  # fmt: skip
def test_offline_commands_have_the_new_forms(bkctl: Bkctl, conf: str, line: str, kind: str) -> None:
    result = bkctl("shell", "-conf", conf, *line.split(), "-o", "json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["kind"] == kind
    assert document["items"]


def test_new_forms_keep_what_the_old_flags_choose(bkctl: Bkctl, conf: str) -> None:
    shell = ["shell", "-conf", conf]
    (entry,) = items(bkctl, *shell, "readlog", "-m", "-l", "0", "-e", "3", "0")
    assert (entry["ledger_id"], entry["entry_id"], entry["payload"]) == (0, 3, "entry-3")
    rows = items(bkctl, *shell, "readlog", "-sp", "1024", "-ep", "1071", "0")
    assert [row["entry_id"] for row in rows] == [0, 1]
    shell += ["-entryformat", "hex"]
    (hexadecimal,) = items(bkctl, *shell, "readlog", "-m", "-l", "0", "-e", "3", "0")
    assert hexadecimal["payload"] == b"entry-3".hex()


def test_log_ids_are_decimal_for_readlog_and_hexadecimal_for_readlogmetadata(bkctl: Bkctl, conf: str) -> None:
    current = Path(conf).parent / "b1/ledgers/current"
    shutil.copy(current / "0.log", current / "1a.log")
    shell = ["shell", "-conf", conf]
    assert bkctl(*shell, "readlog", "26").out.startswith("Scan entry log 26 (1a.log)\n")
    assert bkctl(*shell, "readlog", "1a.log").out.startswith("Scan entry log 26 (1a.log)\n")
    assert bkctl(*shell, "readlogmetadata", "1a").out.startswith(
        "Print entryLogMetadata of entrylog 26 (1a.log)\n"
    )
    assert bkctl(*shell, "readlog", "10").code == ExitCode.NOT_FOUND
    assert "a.log" in bkctl(*shell, "readlog", "10").err
    assert bkctl("shell", "readlog", str(current / "1a.log")).out.startswith("Scan entry log 26 (1a.log)\n")


def test_a_file_of_another_name_is_no_log_or_journal(bkctl: Bkctl, conf: str) -> None:
    version = Path(conf).parent / "b1/ledgers/current/VERSION"
    for command in ("readlog", "readlogmetadata", "readjournal"):
        result = bkctl("shell", command, str(version))
        assert (result.code, result.err.count("\n")) == (ExitCode.USAGE, 1)
        assert "is not called as entry logs" in result.err


def test_with_several_journals_dir_says_which(bkctl: Bkctl, tmp_path: Path) -> None:
    for name in ("j1", "j2"):
        shutil.copytree(fixture_path("bookies-clean", "b1", "journal"), tmp_path / name)
    shutil.copytree(fixture_path("bookies-clean", "b1", "ledgers"), tmp_path / "ledgers")
    ledgers = tmp_path / "ledgers/current"
    (ledgers / "lastMark").rename(ledgers / "lastMark.0")
    (ledgers / "lastMark.1").write_bytes(struct.pack(">qq", 255, 512))
    conf = conf_for(
        tmp_path, journalDirectories=f"{tmp_path}/j1,{tmp_path}/j2", ledgerDirectories=tmp_path / "ledgers"
    )
    shell = ["shell", "-conf", conf]
    result = bkctl(*shell, "readjournal", "1a2054c4bd8.txn")
    assert (result.code, "-dir" in result.err) == (ExitCode.USAGE, True)
    for directory in ("j2", "j2/current"):
        result = bkctl(*shell, "readjournal", "-dir", str(tmp_path / directory), "1a2054c4bd8.txn")
        assert result.out.startswith("Scan journal 1795385215960 (1a2054c4bd8.txn)\nJournal Version : 6\n")
    assert bkctl(*shell, "lastmark").out == (
        "LastLogMark : Journal Id - 1795385215960(1a2054c4bd8.txn), Pos - 571908\n"
        "LastLogMark : Journal Id - 255(ff.txn), Pos - 512\n"
    )


def test_damage_ends_the_output_behind_the_last_good_entry(bkctl: Bkctl, conf: str) -> None:
    log = Path(conf).parent / "b1/ledgers/current/0.log"
    data = bytearray(log.read_bytes())
    data[1024 + 47 : 1024 + 51] = b"\xff\xff\xff\xf0"  # the size of the second entry
    log.write_bytes(data)
    result = bkctl("shell", "-conf", conf, "readlog", "0")
    assert (result.code, result.err.count("\n")) == (ExitCode.INTEGRITY, 1)
    assert result.out.count("Eid=") == 1


def test_a_short_entry_is_called_corrupted() -> None:
    lines = list(entry_lines(1024, bytes(20), ShellSettings(), body=True))
    assert lines == ["--------- ByteOffset=1024, EntrySize=20 ---------", "N/A. Corrupted.", ""]


def test_a_ledger_that_no_index_knows_is_not_found(bkctl: Bkctl, conf: str) -> None:
    result = bkctl("shell", "-conf", conf, "ledger", "99")
    assert (result.code, result.out, result.err.count("\n")) == (ExitCode.NOT_FOUND, "", 1)


def test_without_a_flag_all_kinds_of_files_are_listed(bkctl: Bkctl, conf: str) -> None:
    every = bkctl("shell", "-conf", conf, "listfilesondisc").out
    assert every == bkctl("shell", "-conf", conf, "listfilesondisc", "-txn", "-log", "-idx").out
    assert every.count("--------- Printing the list of ") == 3


def test_old_commands_leave_the_disks_as_they_are(bkctl: Bkctl, conf: str) -> None:
    home = Path(conf).parent / "b1"
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    for line in (
        "lastmark",
        "readlog 0",
        "readlogmetadata 0",
        "readjournal 5",
        "ledger 0",
        "listfilesondisc",
    ):
        bkctl("shell", "-conf", conf, *line.split())
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


# -- text -------------------------------------------------------------------------------------------


def test_hex_dumps_are_those_of_java() -> None:
    """`-entryformat hex` is Commons IO's HexDump, `readledger -b -m` Netty's prettyHexDump."""
    data = bytes(range(0x30, 0x41)) + b"\x00\xff"
    assert payload_lines(data, ShellSettings(entry_format="hex")) == [
        "00000000 30 31 32 33 34 35 36 37 38 39 3A 3B 3C 3D 3E 3F 0123456789:;<=>?",
        "00000010 40 00 FF                                        @..",
    ]
    assert list(netty_lines(data)) == [
        "         +-------------------------------------------------+",
        "         |  0  1  2  3  4  5  6  7  8  9  a  b  c  d  e  f |",
        "+--------+-------------------------------------------------+----------------+",
        "|00000000| 30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f |0123456789:;<=>?|",
        "|00000010| 40 00 ff                                        |@..             |",
        "+--------+-------------------------------------------------+----------------+",
    ]
    assert list(netty_lines(b"")) == payload_lines(b"", ShellSettings(entry_format="hex")) == []


def test_payloads_do_not_drive_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = b"caf\xc3\xa9\n\x1b[2J\xff"
    assert payload_lines(payload, ShellSettings()) == ["café", "\x1b[2J\ufffd"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert payload_lines(payload, ShellSettings()) == ["café", "\\x1b[2J\ufffd"]
