"""The released Apache BookKeeper: its jars, and the processes that run them.

The jars come through Maven into `.cache/interop`; the drivers in `java/` are compiled beside them.
`BKCTL_INTEROP_PROFILE=previous` takes the release before the newest.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bkctl.metadata.store import MetadataStore
from tests.integration.bookies import numbered
from tests.zookeeper_server import free_port

_HERE = Path(__file__).parent
_CACHE = _HERE.parent.parent / ".cache" / "interop"
_START_S = 60.0
DB_STORAGE = "org.apache.bookkeeper.bookie.storage.ldb.DbLedgerStorage"
SORTED_STORAGE = "org.apache.bookkeeper.bookie.SortedLedgerStorage"


@dataclass(frozen=True, slots=True)
class Apache:
    """One release: its version and the class path with the compiled drivers."""

    version: str
    class_path: str

    def java_version(self) -> str:
        told = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60, check=True)
        return told.stderr.split('"')[1]

    def java(self, *arguments: str, heap_mib: int = 128) -> list[str]:
        """A command line of a JVM that starts fast and stays small."""
        return [
            "java", f"-Xmx{heap_mib}m", "-XX:MaxDirectMemorySize=512m", "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Dorg.apache.logging.log4j.level=WARN",
            "-Dio.netty.tryReflectionSetAccessible=true", "-cp", self.class_path, *arguments,
        ]  # fmt: skip


def resolve() -> Apache:
    """The release that this run is about; downloaded and compiled when the cache does not have it.

    Raises AssertionError, in one line, when there is no JDK or no Maven.
    """
    missing = [tool for tool in ("java", "javac", "mvn") if shutil.which(tool) is None]
    assert not missing, f"missing: {', '.join(missing)}; install a JDK (17 or newer) and Maven"
    profile = os.environ.get("BKCTL_INTEROP_PROFILE", "newest")
    sources = sorted((_HERE / "java").glob("*.java"))
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in (_HERE / "pom.xml", *sources))).hexdigest()
    home = _CACHE / f"{profile}-{wanted[:16]}"
    if not home.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        made = Path(f"{home}.{os.getpid()}")
        select_profile = [] if profile == "newest" else [f"-P{profile}"]
        _run("mvn", "-q", "-B", "-f", str(_HERE / "pom.xml"), *select_profile,
             "dependency:copy-dependencies", f"-DoutputDirectory={made / 'lib'}")  # fmt: skip
        _run("javac", "-d", str(made / "classes"), "-cp", str(made / "lib" / "*"), *map(str, sources))
        try:
            made.rename(home)
        except OSError:  # another run was faster
            assert home.exists()
            shutil.rmtree(made)
    [server] = (home / "lib").glob("bookkeeper-server-*.jar")
    version = server.stem.removeprefix("bookkeeper-server-")
    return Apache(version, f"{home / 'classes'}:{home / 'lib'}/*")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command[0]} failed: {(done.stdout + done.stderr)[-2000:]}"


async def registered(uri: str) -> set[str]:
    """The bookies that take part in the cluster, writable or read-only."""
    store = await MetadataStore.open(uri)
    try:
        return {*await store.registration.writable(), *await store.registration.readonly()}
    finally:
        await store.close()


class JavaProcess:
    """A JVM with a configuration file and a log; subclasses say what it runs and when it is ready."""

    main = ""

    def __init__(self, apache: Apache, directory: Path, name: str, settings: Mapping[str, object]) -> None:
        self.name = name
        self.directory = directory
        self.log = directory / f"{name}.log"
        self.conf = directory / f"{name}.conf"
        self._apache = apache
        self._settings = dict(settings)
        self.process: subprocess.Popen[bytes] | None = None

    def write_conf(self) -> None:
        """The configuration file, for this process or for the Java shell."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.conf.write_text("".join(f"{key}={value}\n" for key, value in self._settings.items()))

    def start(self, *, wait: bool = True) -> None:
        assert self.process is None, f"{self.name} runs already"
        self.write_conf()
        command = self._apache.java(self.main, "-c", str(self.conf), heap_mib=192)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while not self.ready():
            assert self.process is not None
            code = self.process.poll()
            assert code is None, f"{self.name} ended with {code}:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def ready(self) -> bool:
        raise AssertionError("a subclass says when it is ready")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        return process.wait(timeout=60)


class JavaBookie(JavaProcess):
    """One of Apache's bookies, on one port for life, with the directories that a `BookieProcess` has."""

    main = "org.apache.bookkeeper.server.Main"

    def __init__(
        self,
        apache: Apache,
        uri: str,
        directory: Path,
        name: str,
        settings: Mapping[str, object] | None = None,
        *,
        storage: str = DB_STORAGE,
        journals: int = 1,
        ledgers: int = 1,
    ) -> None:
        self.port = free_port()
        self._uri = uri
        self.address = f"127.0.0.1:{self.port}"
        super().__init__(
            apache,
            directory,
            name,
            {
                "metadataServiceUri": uri,
                "bookieId": name,
                "bookiePort": self.port,
                "advertisedAddress": "127.0.0.1",
                "allowLoopback": "true",
                "journalDirectories": ",".join(map(str, numbered(directory, "journal", journals))),
                "ledgerDirectories": ",".join(map(str, numbered(directory, "ledgers", ledgers))),
                "ledgerStorageClass": storage,
                "diskUsageThreshold": "0.99",
                "diskUsageWarnThreshold": "0.98",
                "diskUsageLwmThreshold": "0.97",
                "journalPreAllocSizeMB": 4,
                "entryLogFilePreallocationEnabled": "false",
                "dbStorage_writeCacheMaxSizeMb": 32,
                "dbStorage_readAheadCacheMaxSizeMb": 16,
                "dbStorage_rocksDB_blockCacheSize": 8 << 20,
                "serverNumIOThreads": 2,
                "numAddWorkerThreads": 1,
                "numReadWorkerThreads": 2,
                "numJournalCallbackThreads": 1,
                "httpServerEnabled": "false",
                **(settings or {}),
            },
        )

    def ready(self) -> bool:
        """It listens, and clients find it."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return self.name in asyncio.run(registered(self._uri))
        return False


class JavaAutoRecovery(JavaProcess):
    """Apache's auditor and replication worker in a process of their own."""

    main = "org.apache.bookkeeper.replication.AutoRecoveryMain"

    def __init__(self, apache: Apache, uri: str, directory: Path, settings: Mapping[str, object]) -> None:
        port = free_port()  # it takes its name from the port that a bookie would have
        defaults = {
            "metadataServiceUri": uri,
            "bookiePort": port,
            "advertisedAddress": "127.0.0.1",
            "allowLoopback": "true",
            "httpServerEnabled": "false",
        }
        super().__init__(apache, directory, "autorecovery", defaults | dict(settings))

    def ready(self) -> bool:
        return True  # what it does shows in the metadata


@contextlib.contextmanager
def running(processes: Sequence[Any]) -> Iterator[None]:
    """Bookies of either kind, started at once; whoever still runs at the end is killed."""
    try:
        for process in processes:
            process.start(wait=False)
        for process in processes:
            process.wait_ready()
        yield
    finally:
        for process in processes:
            if process.process is not None:
                process.kill()


class JavaError(Exception):
    """What the Java client threw: the simple name of its class, and BookKeeper's code (0: none)."""

    def __init__(self, name: str, code: int, message: str) -> None:
        super().__init__(f"{name} ({code}): {message}")
        self.name = name
        self.code = code


class JavaDriver:
    """`java/Driver.java`: Java clients, many in one process, told what to do."""

    def __init__(self, apache: Apache, log: Path) -> None:
        self._log = log
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                apache.java("Driver", heap_mib=512),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def call(self, op: str, *, timeout_s: float = 90, **arguments: Any) -> Any:
        """Raises JavaError for what the client threw, AssertionError when it does not answer."""
        request = json.dumps({"op": op, **arguments}).encode()
        _pipe(self.process.stdin).write(request + b"\n")
        _pipe(self.process.stdin).flush()
        answers = _pipe(self.process.stdout)
        ready, _, _ = select.select([answers], [], [], timeout_s)
        line = answers.readline() if ready else b""
        assert line, f"no answer to {op}:\n{self._log.read_text()[-3000:]}"
        answer = json.loads(line)
        if "error" in answer:
            raise JavaError(answer["error"], answer["code"], answer["message"])
        return answer["ok"]

    def client(self, name: str, uri: str, **settings: object) -> "JavaClient":
        """A connected client; `settings` are Java's keys."""
        self.call("connect", client=name, uri=uri, settings={"throttle": 0, **settings})
        return JavaClient(self, name)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        _pipe(self.process.stdin).close()
        _pipe(self.process.stdout).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


class JavaClient:
    """One Java client; the operations and their arguments are those of `java/*.java`."""

    def __init__(self, driver: JavaDriver, name: str) -> None:
        self._driver = driver
        self.name = name

    def call(self, op: str, **arguments: Any) -> Any:
        """Handle names are this client's own. Raises JavaError."""
        if "handle" in arguments:
            arguments["handle"] = f"{self.name}/{arguments['handle']}"
        return self._driver.call(op, client=self.name, **arguments)

    def close(self) -> None:
        self.call("disconnect")
