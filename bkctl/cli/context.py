"""Named clusters, and which cluster a command works on.

`contexts.json` in the configuration directory ($XDG_CONFIG_HOME/bkctl):
`{"current": NAME or null, "contexts": {NAME: {"metadata_uri": URI, "read_only": false}}}`.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bkctl.cli.options import GlobalOptions, global_options
from bkctl.errors import BadInputError, CorruptDataError, NotFoundError, RefusedError

if TYPE_CHECKING:
    from bkctl.metadata.store import MetadataStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Context:
    name: str
    metadata_uri: str
    read_only: bool = False


@dataclass(slots=True)
class Contexts:
    """All of them; `current` is a name in `by_name`, or None."""

    current: str | None = None
    by_name: dict[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """Raises NotFoundError for an unknown name."""
        if name not in self.by_name:
            known = ", ".join(self.by_name) or "none yet"
            raise NotFoundError(f"no context '{name}'; there are: {known}; see 'bkctl context list'")
        return self.by_name[name]

    def add(self, context: Context) -> None:
        if not _NAME.fullmatch(context.name):
            raise BadInputError(f"cannot use '{context.name}' as a name; take letters, digits, '.', '_', '-'")
        self.by_name[context.name] = context

    def remove(self, name: str) -> None:
        self.get(name)
        del self.by_name[name]
        if self.current == name:
            self.current = None


def contexts_path() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_path("bkctl"), "contexts.json")


def read_contexts() -> Contexts:
    """Raises CorruptDataError when the file is not what `bkctl` writes."""
    path = contexts_path()
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Contexts()
    except ValueError as error:
        raise CorruptDataError(f"cannot read the contexts, {path}: {error}") from error
    return _parsed(content, path)


def _parsed(content: Any, path: Path) -> Contexts:
    try:
        contexts = {
            str(name): Context(str(name), str(values["metadata_uri"]), bool(values.get("read_only", False)))
            for name, values in content["contexts"].items()
        }
        current = content["current"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"cannot read the contexts, {path}: {error!r} missing or wrong") from error
    return Contexts(current if current in contexts else None, contexts)


@contextlib.contextmanager
def changed_contexts() -> Iterator[Contexts]:
    """The contexts, to be changed and then written back, undisturbed by another bkctl."""
    path = contexts_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        contexts = read_contexts()
        yield contexts
        content = {
            "current": contexts.current,
            "contexts": {
                context.name: {"metadata_uri": context.metadata_uri, "read_only": context.read_only}
                for context in contexts.by_name.values()
            },
        }
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(new, path)


def chosen_context(options: GlobalOptions) -> Context:
    """The cluster to work on: -u, -C, BKCTL_METADATA_URI, BKCTL_CONTEXT, the current context.

    Its name is "" when it was given by URI. Raises BadInputError when there is none.
    """
    uri, name = options.metadata_uri, options.context
    if uri is None and name is None:
        uri, name = os.environ.get("BKCTL_METADATA_URI"), os.environ.get("BKCTL_CONTEXT")
    if uri:
        return Context("", uri, options.read_only)
    contexts = read_contexts()
    name = name or contexts.current
    if name is None:
        raise BadInputError(
            "which cluster? give -u URI, set BKCTL_METADATA_URI, or choose a context: bkctl context use NAME"
        )
    context = contexts.get(name)
    return replace(context, read_only=context.read_only or options.read_only)


def metadata_uri() -> str:
    """That of the cluster this command reads from."""
    return chosen_context(global_options()).metadata_uri


def metadata_uri_to_change() -> str:
    """That of the cluster this command changes. Raises RefusedError for a read-only one."""
    context = chosen_context(global_options())
    if context.read_only:
        raise RefusedError(
            f"cluster '{context.name or context.metadata_uri}' is read-only here; nothing was changed"
        )
    return context.metadata_uri


@contextlib.asynccontextmanager
async def metadata_store(uri: str, *, create: bool = False) -> "AsyncIterator[MetadataStore]":
    """An open session with the store, closed at the end."""
    from bkctl.metadata.store import MetadataStore

    store = await MetadataStore.open(uri, create=create)
    try:
        yield store
    finally:
        await store.close()
