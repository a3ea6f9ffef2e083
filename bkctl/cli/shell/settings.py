"""What stands before the old command: configuration, ledger id format, entry format."""

import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

import click

from bkctl.cli.arguments import parse_ledger_id
from bkctl.cli.context import metadata_uri, metadata_uri_to_change
from bkctl.cli.options import global_options
from bkctl.errors import BadInputError
from bkctl.types import LedgerId

LEDGER_ID_FORMATS = ("hex", "long", "uuid")
ENTRY_FORMATS = ("hex", "string")

_BASE_CONF = "baseconf.conf"
_LOCAL_BOOKIES_DIRECTORY = "/tmp/localbookies-config"  # where upstream's `localbookie` writes


@dataclass(frozen=True, slots=True)
class ShellSettings:
    """`conf` None: nothing on the command line named a configuration."""

    conf: Path | None = None
    ledger_id_format: str = "long"
    entry_format: str = "string"

    def ledger_id_text(self, ledger_id: int) -> str:
        if self.ledger_id_format == "hex":
            return f"{ledger_id:x}"
        return str(uuid.UUID(int=ledger_id)) if self.ledger_id_format == "uuid" else str(ledger_id)

    def parse_ledger_id(self, text: str) -> LedgerId:
        """In the format asked for; without one, also 0x2a and UUIDs. Raises BadInputError."""
        text = text.strip()
        if self.ledger_id_format == "hex" and re.fullmatch(r"[0-9a-fA-F]+", text):
            return parse_ledger_id(f"0x{text}")
        if self.ledger_id_format == "uuid" and "-" not in text:
            raise BadInputError(f"'{text}' is no UUID; -ledgeridformat uuid wants ledger ids as UUIDs")
        return parse_ledger_id(text)


def shell_settings() -> ShellSettings:
    """Those of the running command."""
    settings = click.get_current_context().obj
    assert isinstance(settings, ShellSettings), settings
    return settings


def local_bookie_conf(bookie: str) -> Path:
    """What upstream's `localbookie` wrote for `host:port`; "" for all bookies together."""
    directory = os.environ.get("LOCALBOOKIES_CONFIG_DIR", _LOCAL_BOOKIES_DIRECTORY)
    return Path(directory, f"{bookie}.conf" if bookie else _BASE_CONF)


def configuration() -> Path | None:
    """-conf or -localbookie, else BOOKIE_CONF, as for upstream's launcher."""
    named = os.environ.get("BOOKIE_CONF")
    return shell_settings().conf or (Path(named) if named else None)


def cluster_uri() -> str:
    """The cluster to read from: -u or -C, the configuration named by a flag, BKCTL_* in the
    environment, BOOKIE_CONF, the current context. Raises BadInputError when there is none."""
    _use_configured_cluster()
    return metadata_uri()


def cluster_uri_to_change() -> str:
    """As `cluster_uri`. Raises RefusedError for a read-only one."""
    _use_configured_cluster()
    return metadata_uri_to_change()


def _use_configured_cluster() -> None:
    from bkctl.config import load_bookie_settings

    options, conf = global_options(), configuration()
    chosen = options.metadata_uri or options.context
    in_environment = os.environ.get("BKCTL_METADATA_URI") or os.environ.get("BKCTL_CONTEXT")
    if conf is not None and not chosen and (shell_settings().conf is not None or not in_environment):
        options.metadata_uri = load_bookie_settings(conf, {}).metadata_uri or None


def new_form() -> bool:
    """Whether the result is wanted as the other commands of bkctl give it."""
    options = global_options()
    return bool(
        options.output or options.columns or options.sort or options.filters or options.limit is not None
    )
