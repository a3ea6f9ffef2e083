"""The composition root of `bkctl bookie start`: real clock, disk, metadata store and sockets."""

import asyncio
import gc
import logging
import os
import signal
import sys

from bkctl.config import BookieSettings
from bkctl.errors import BadInputError, BookieStartError, CorruptDataError, MetadataStoreError

log = logging.getLogger("bkctl.bookie")

# A journal thread beside a busy loop waits this long for the interpreter after every system call;
# the default of 5 ms costs a fifth of the throughput.
_SWITCH_INTERVAL_S = 0.0002

EXIT_CONFIGURATION, EXIT_METADATA, EXIT_BOOKIE = 1, 3, 5  # Java's exit codes
EXIT_INTERRUPTED = 130


def run_bookie(settings: BookieSettings) -> int:
    """Run a bookie until SIGTERM, SIGINT or a failure; the exit code (Java's: 0 to 5).

    Prints `ready BOOKIE_ID at HOST:PORT` on stdout once it serves. A second signal leaves at once.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for warning in settings.warnings:
        log.warning("%s", warning)
    if settings.refusals:
        return _refused("; ".join(settings.refusals), EXIT_CONFIGURATION)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_serve(settings))
        except BookieStartError as error:
            return _refused(str(error), error.exit_code)
        except BadInputError as error:
            return _refused(str(error), EXIT_CONFIGURATION)
        except MetadataStoreError as error:
            return _refused(str(error), EXIT_METADATA)
        except (CorruptDataError, OSError) as error:
            return _refused(str(error), EXIT_BOOKIE)


def _refused(reason: str, exit_code: int) -> int:
    print(f"bkctl: the bookie does not start: {reason}", file=sys.stderr)
    return exit_code


async def _serve(settings: BookieSettings) -> int:
    from bkctl.metadata.store import MetadataStore
    from bkctl.server.lifecycle import BookieServer
    from bkctl.server.storage.fs import OsFs

    stopping = _stop_on_signals()
    if not settings.metadata_uri:
        raise BadInputError("no metadata store: give -u/--metadata-uri or metadataServiceUri")
    store = await MetadataStore.open(settings.metadata_uri, session_timeout_ms=settings.zk_timeout_ms)
    try:
        server = BookieServer(settings, store, OsFs())
        await server.start()
        gc.collect()
        gc.freeze()  # what is alive now lives as long as the bookie
        print(f"ready {server.bookie_id} at {server.address}", flush=True)
        waited: set[asyncio.Future[object]] = {server.failed, stopping}  # type: ignore[arg-type]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        failed = server.failed.done()
        await server.stop()
        return EXIT_BOOKIE if failed else 0
    finally:
        await store.close()


def _stop_on_signals() -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[None] = loop.create_future()

    def on_signal() -> None:
        if stopping.done():
            os._exit(EXIT_INTERRUPTED)  # at once, whatever threads do: the journal makes it safe
        stopping.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return stopping
