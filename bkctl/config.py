"""The settings of a bookie, read from Java's `bk_server.conf` keys, validated once.

A setting keeps BookKeeper's key, so that the files operators have go on working: a Java
`.properties` file, then overrides (flags, `--set key=value`), in that order.

Source: spec storage section 14, spec metadata section 18, spec wire sections 1 and 8.9; upstream
ServerConfiguration.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from bkctl.config_keys import BOOKKEEPER_KEYS
from bkctl.errors import BadInputError

MIB = 1 << 20


def _setting(key: str, default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A field read from BookKeeper's `key`; `low` and `high` are inclusive bounds of a number."""
    return field(default=default, metadata={"key": key, "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class BookieSettings:
    """Everything a bookie is told. Directory strings stay verbatim: cookies compare them as text."""

    metadata_uri: str = _setting("metadataServiceUri", "")
    zk_timeout_ms: int = _setting("zkTimeout", 10_000, low=1_000)

    bookie_id: str = _setting("bookieId", "")
    port: int = _setting("bookiePort", 3181, low=0, high=65535)
    advertised_address: str = _setting("advertisedAddress", "")
    listening_interface: str = _setting("listeningInterface", "")
    allow_loopback: bool = _setting("allowLoopback", False)
    use_host_name: bool = _setting("useHostNameAsBookieID", False)
    use_short_host_name: bool = _setting("useShortHostName", False)

    journal_directories: tuple[str, ...] = _setting("journalDirectories", ("/tmp/bk-txn",))
    ledger_directories: tuple[str, ...] = _setting("ledgerDirectories", ("/tmp/bk-data",))
    index_directories: tuple[str, ...] = _setting("indexDirectories", ())

    frame_bytes_max: int = _setting("nettyMaxFrameSizeBytes", 5 * MIB, low=1024, high=1 << 30)
    batch_read_bytes_max: int = _setting("maxBatchReadSize", 5 * MIB, low=1)
    queued_add_bytes_max: int = _setting("bkctl.queuedAddBytesMax", 64 * MIB, low=MIB)
    connections_max: int = _setting("bkctl.connectionsMax", 10_000, low=1)

    journal_size_mib_max: int = _setting("journalMaxSizeMB", 2048, low=1)
    journal_preallocate_mib: int = _setting("journalPreAllocSizeMB", 16, low=1, high=1024)
    journal_backups_max: int = _setting("journalMaxBackups", 5, low=0)
    journal_alignment_bytes: int = _setting("journalAlignmentSize", 512, low=512, high=1 << 20)
    journal_format: int = _setting("journalFormatVersionToWrite", 6, low=4, high=6)
    journal_sync: bool = _setting("journalSyncData", True)
    journal_skip_invalid: bool = _setting("skipReplayJournalInvalidRecord", False)

    write_cache_mib: int = _setting("dbStorage_writeCacheMaxSizeMb", 128, low=4)
    read_cache_mib: int = _setting("dbStorage_readAheadCacheMaxSizeMb", 64, low=1)
    read_ahead_count: int = _setting("dbStorage_readAheadCacheBatchSize", 100, low=0)
    throttle_ms_max: int = _setting("dbStorage_maxThrottleTimeMs", 10_000, low=0)
    entry_log_bytes_max: int = _setting("logSizeLimit", 1 << 30, low=4096, high=1 << 30)
    flush_interval_ms: int = _setting("flushInterval", 10_000, low=1)

    read_only_mode_enabled: bool = _setting("readOnlyModeEnabled", True)
    read_only_on_any_disk_full: bool = _setting("readOnlyModeOnAnyDiskFullEnabled", True)
    force_read_only: bool = _setting("forceReadOnlyBookie", False)
    disk_usage_max: float = _setting("diskUsageThreshold", 0.95, low=0.01, high=0.9999)
    disk_usage_warn: float = _setting("diskUsageWarnThreshold", 0.90, low=0.01, high=0.9999)
    disk_check_interval_ms: int = _setting("diskCheckInterval", 10_000, low=10)
    high_priority_bytes_min: int = _setting("minUsableSizeForHighPriorityWrites", 1 << 30, low=0)

    gc_wait_ms: int = _setting("gcWaitTime", 600_000, low=1)
    gc_metadata_reads_per_s: int = _setting("gcMetadataOpRateLimit", 1000, low=1)
    gc_over_replicated_wait_ms: int = _setting("gcOverreplicatedLedgerWaitTime", 86_400_000)
    gc_over_replicated_at_once: int = _setting("gcOverreplicatedLedgerMaxConcurrentRequests", 1000, low=1)
    gc_forced_when_full: bool = _setting("isForceGCAllowWhenNoSpace", False)
    minor_compaction_ratio: float = _setting("minorCompactionThreshold", 0.2, high=1)
    minor_compaction_interval_s: int = _setting("minorCompactionInterval", 3600)
    minor_compaction_ms_max: int = _setting("minorCompactionMaxTimeMillis", -1)
    major_compaction_ratio: float = _setting("majorCompactionThreshold", 0.8, high=1)
    major_compaction_interval_s: int = _setting("majorCompactionInterval", 86_400)
    major_compaction_ms_max: int = _setting("majorCompactionMaxTimeMillis", -1)
    compaction_forced_allowed: bool = _setting("forceAllowCompaction", False)
    compaction_of_small_logs: bool = _setting("useTargetEntryLogSizeForGc", False)
    compaction_rate: int = _setting("compactionRate", 1000, low=1)
    compaction_entries_per_s: int = _setting("compactionRateByEntries", 0, low=0)  # 0: compactionRate
    compaction_bytes_per_s: int = _setting("compactionRateByBytes", 1_000_000, low=1)
    compaction_by_bytes: bool = _setting("isThrottleByBytes", False)

    warnings: tuple[str, ...] = ()  # one line each: keys that have no effect here
    refusals: tuple[str, ...] = ()  # one line each: why a bookie must not start with these settings


ALIASES = {"journalDirectory": "journalDirectories"}

# A bookie that would silently drop what these ask for is less safe than one that refuses.
REFUSED = {
    "bookieAuthProviderFactoryClass": "authentication is not supported yet",
    "tlsProviderFactoryClass": "TLS is not supported yet",
    "entryLogPerLedgerEnabled": "one entry log per ledger is not supported",
}

# The table service's keys stand in the shipped bk_server.conf, too.
_OTHER_COMPONENTS = ("dlog.", "storage.", "storageserver.")

_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def parse_properties(text: str) -> dict[str, tuple[str, int]]:
    """Java's `.properties` text: {key: (value, line number from 1)}; the last of equal keys counts."""
    found: dict[str, tuple[str, int]] = {}
    lines = iter(enumerate(text.splitlines(), 1))
    for number, raw in lines:
        line = raw.lstrip(" \t\f")
        if not line or line[0] in "#!":
            continue
        while (len(line) - len(line.rstrip("\\"))) % 2:  # an odd run of backslashes continues the line
            line = line[:-1] + next(lines, (0, ""))[1].lstrip(" \t\f")
        match = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, re.DOTALL)
        assert match is not None  # every part may be empty
        found[_unescape(match[1], number)] = (_unescape(match[2], number).strip(), number)
    return found


def _unescape(text: str, line: int) -> str:
    def one(match: re.Match[str]) -> str:
        escape = match[1]
        if escape[0] == "u":
            if len(escape) < 5:
                raise BadInputError(f"line {line}: malformed \\u escape in {text!r}")
            return chr(int(escape[1:], 16))
        return _ESCAPES.get(escape, escape)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", one, text, flags=re.DOTALL)


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}[
            text.lower()
        ]
    except KeyError:
        raise ValueError("expected true or false") from None


def _strings(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_PARSERS: dict[Any, Callable[[str], Any]] = {
    bool: _boolean,
    int: int,
    float: float,
    str: str,
    tuple[str, ...]: _strings,
}


def _parse(setting: Field[Any], text: str, where: str) -> Any:
    low, high = setting.metadata["low"], setting.metadata["high"]
    try:
        value = _PARSERS[setting.type](text)
    except ValueError:
        kind = getattr(setting.type, "__name__", "list")
        raise BadInputError(
            f"{where}: {setting.metadata['key']} needs a value of type {kind}, got {text!r}"
        ) from None
    if (low is not None and value < low) or (high is not None and value > high):
        raise BadInputError(
            f"{where}: {setting.metadata['key']}={text} is outside {low if low is not None else '-∞'} to "
            f"{high if high is not None else '∞'}"
        )
    return value


def load_bookie_settings(conf_file: Path | None, overrides: Mapping[str, str]) -> BookieSettings:
    """Settings from a Java properties file and then `overrides` ({BookKeeper key: text}).

    Raises:
        BadInputError: the file cannot be read, a value does not parse or is out of bounds. Keys without
            effect only become warnings; protection that is not there becomes a refusal to start.
    """
    found: dict[str, tuple[str, str]] = {}  # key -> (text, where it was said)
    if conf_file is not None:
        try:
            text = conf_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(
                f"configuration {conf_file}: {error}; give a readable file with -c"
            ) from error
        for key, (value, number) in parse_properties(text).items():
            found[key] = (value, f"{conf_file}:{number}")
    found.update({key: (value, "command line") for key, value in overrides.items()})
    return _settings(found)


def _settings(found: Mapping[str, tuple[str, str]]) -> BookieSettings:
    by_key = {f.metadata["key"]: f for f in fields(BookieSettings) if "key" in f.metadata}
    values: dict[str, Any] = {}
    warnings: list[str] = []
    refusals: list[str] = []
    for given, (text, where) in found.items():
        key = ALIASES.get(given, given)
        if key in REFUSED and text and text.lower() != "false":
            refusals.append(f"{where}: {key}: {REFUSED[key]}; remove the key to start without it")
            continue
        if (setting := by_key.get(key)) is not None:
            if text or setting.type is str:
                values[setting.name] = _parse(setting, text, where)
        elif key not in BOOKKEEPER_KEYS and not key.startswith(_OTHER_COMPONENTS):
            near = difflib.get_close_matches(key, BOOKKEEPER_KEYS | by_key.keys(), n=1)
            warnings.append(
                f"{where}: unknown key {key} is ignored" + (f"; did you mean {near[0]}?" if near else "")
            )
    if "metadata_uri" not in values and "zkServers" in found:
        servers = found["zkServers"][0].replace(",", ";")
        root = found.get("zkLedgersRootPath", ("/ledgers", ""))[0]
        values["metadata_uri"] = f"zk+null://{servers}{root}"
    if (storage := found.get("ledgerStorageClass")) and not storage[0].endswith("DbLedgerStorage"):
        warnings.append(
            f"{storage[1]}: ledgerStorageClass {storage[0]}: bkctl stores as DbLedgerStorage does"
        )
    if found.get("journalWriteData", ("true", ""))[0].lower() == "false":
        warnings.append("journalWriteData=false: bkctl journals every entry all the same")
    settings = BookieSettings(**values, warnings=tuple(warnings), refusals=tuple(refusals))
    _check_relations(settings)
    return settings


def _check_relations(settings: BookieSettings) -> None:
    if not settings.journal_directories or not settings.ledger_directories:
        raise BadInputError("journalDirectories and ledgerDirectories each need at least one directory")
    if settings.index_directories and len(settings.index_directories) != len(settings.ledger_directories):
        raise BadInputError("indexDirectories must name as many directories as ledgerDirectories")
    for name in ("journal_directories", "ledger_directories", "index_directories"):
        listed = getattr(settings, name)
        if len(set(listed)) != len(listed):
            raise BadInputError(
                f"{name.replace('_', ' ')}: one directory is named twice: {', '.join(listed)}"
            )
    _check_compactions(settings)
    if settings.disk_usage_warn > settings.disk_usage_max:
        raise BadInputError("diskUsageWarnThreshold must not be above diskUsageThreshold")
    if settings.journal_alignment_bytes % 512:
        raise BadInputError("journalAlignmentSize must be a multiple of 512")


def _check_compactions(settings: BookieSettings) -> None:
    """Raises BadInputError as upstream's collector refuses to start."""
    minor = settings.minor_compaction_ratio, settings.minor_compaction_interval_s
    major = settings.major_compaction_ratio, settings.major_compaction_interval_s
    enabled = [min(kind) > 0 for kind in (minor, major)]
    for name, (_, interval_s), on in zip(("minor", "major"), (minor, major), enabled, strict=True):
        if on and interval_s * 1000 < settings.gc_wait_ms:
            raise BadInputError(
                f"{name}CompactionInterval ({interval_s} s) must not be below gcWaitTime"
                f" ({settings.gc_wait_ms} ms)"
            )
    if all(enabled) and not (minor[0] < major[0] and minor[1] < major[1]):
        raise BadInputError(
            "minorCompactionThreshold and minorCompactionInterval must be below those of major compactions"
        )


def defaults() -> dict[str, Any]:
    """{BookKeeper key: default} of every setting, for listings."""
    return {
        f.metadata["key"]: f.default
        for f in fields(BookieSettings)
        if f.default is not MISSING and "key" in f.metadata
    }
