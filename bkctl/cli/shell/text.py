"""The text forms of BookieShell up to 4.17; later versions print the same values as log attributes.

Source: upstream LedgerMetadataImpl.toString, FormatUtil, StringEntryFormatter, HexDumpEntryFormatter,
InfoCommand.getReadable, CommandHelpers; Netty's prettyHexDump, Commons IO's HexDump.
"""

import base64
import sys
from collections.abc import Iterable, Iterator

from bkctl.cli.render import one_line
from bkctl.cli.shell.settings import ShellSettings
from bkctl.types import Address, LedgerMetadata

_UNITS = ("", "KB", "MB", "GB", "TB")
_ROW_BYTES = 16
_NETTY_RULER = f"+{'-' * 8}+{'-' * 49}+{'-' * 16}+"
_NETTY_HEAD = (
    f"         +{'-' * 49}+",
    f"         |{''.join(f'  {column:x}' for column in range(_ROW_BYTES))} |",
    _NETTY_RULER,
)


def print_lines(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def metadata_text(metadata: LedgerMetadata) -> str:
    """As upstream prints it, with the password; custom metadata by key, not in a hash map's order."""
    parts: list[tuple[str, object]] = [
        ("formatVersion", metadata.format_version),
        ("ensembleSize", metadata.ensemble_size),
        ("writeQuorumSize", metadata.write_quorum_size),
        ("ackQuorumSize", metadata.ack_quorum_size),
        ("state", metadata.state.name),
    ]
    if metadata.closed:
        parts += [("length", metadata.length), ("lastEntryId", metadata.last_entry_id)]
    if metadata.password is not None:
        digest = metadata.digest_type.name if metadata.digest_type is not None else "null"
        parts += [("digestType", digest), ("password", _base64(metadata.password))]
    ensembles = {str(s.first_entry_id): f"[{', '.join(s.ensemble)}]" for s in metadata.segments}
    custom = {key: _base64(value) for key, value in sorted(metadata.custom_metadata.items())}
    parts += [("ensembles", _map_text(ensembles)), ("customMetadata", _map_text(custom))]
    return f"LedgerMetadata{{{', '.join(f'{key}={value}' for key, value in parts)}}}"


def _base64(value: bytes) -> str:
    return "base64:" + base64.b64encode(value).decode()


def _map_text(values: dict[str, str]) -> str:
    return f"{{{', '.join(f'{key}={value}' for key, value in values.items())}}}"


def bookie_text(bookie_id: str, address: Address | None, ip: str | None, host_name: str) -> str:
    """`address` None: nobody knows it; `ip` None: its host has none."""
    if address is None:
        return f"BookieID:{bookie_id}, IP:UNKNOWN, Port:0, Hostname:UNKNOWN"
    return f"BookieID:{bookie_id}, IP:{ip or 'UNKNOWN'}, Port:{address.port}, Hostname:{host_name}"


def bytes_text(count: int) -> str:
    """74782113792 -> '74782113792(74.782GB)': three digits at most behind the point, cut off."""
    value, power = count, 0
    while value >= 1000 and power < len(_UNITS) - 1:
        value, power = value // 1000, power + 1
    if not power:
        return str(count)
    thousandths = count * 1000 // 1000**power
    return f"{count}({thousandths / 1000:.3f}".rstrip("0").rstrip(".") + f"{_UNITS[power]})"


def payload_lines(payload: bytes, settings: ShellSettings) -> list[str]:
    """The body of an entry; on a terminal without control characters."""
    if settings.entry_format == "hex":
        return list(_hex_lines(payload))
    lines = payload.decode(errors="replace").split("\n")
    return [one_line(line) for line in lines] if sys.stdout.isatty() else lines


def _hex_lines(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), _ROW_BYTES):
        row = data[start : start + _ROW_BYTES]
        yield f"{start:08X} {row.hex(' ').upper():<47} {_visible(row)}"


def netty_lines(data: bytes) -> Iterator[str]:
    if not data:
        return
    yield from _NETTY_HEAD
    for start in range(0, len(data), _ROW_BYTES):
        row = data[start : start + _ROW_BYTES]
        yield f"|{start:08x}| {row.hex(' '):<47} |{_visible(row):<16}|"
    yield _NETTY_RULER


def _visible(row: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
