"""A real ZooKeeper server for tests: Debian's, or that of a given class path."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_JARS = Path("/usr/share/java")
_NEEDED = (
    "zookeeper", "zookeeper-jute", "slf4j-api", "slf4j-nop", "netty-handler", "netty-transport",
    "netty-buffer", "netty-common", "netty-codec", "netty-resolver", "netty-transport-native-unix-common",
    "netty-transport-native-epoll", "snappy-java", "metrics-core", "commons-cli",
)  # fmt: skip
_START_S = 60.0  # a cold JVM on a machine that is busy with other tests


def free_port() -> int:
    """A port of the loopback address that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _debian_class_path() -> str:
    missing = [name for name in _NEEDED if not (_JARS / f"{name}.jar").exists()]
    assert not missing, "missing: the Debian package zookeeper; install it with `make zookeeper`"
    return ":".join(str(_JARS / f"{name}.jar") for name in _NEEDED)


class ZooKeeperServer:
    """One stand-alone server in a temporary directory; `start` again after `stop` or `kill` keeps
    its port and data. Sessions may be as short as 200 ms and expire with 100 ms precision."""

    def __init__(self, class_path: str | None = None) -> None:
        self._class_path = class_path or _debian_class_path()
        assert shutil.which("java"), "missing: java; install it with `make zookeeper`"
        self._directory = Path(tempfile.mkdtemp(prefix="bkctl-zookeeper-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._config = self._directory / "zoo.cfg"
        self._config.write_text(
            f"dataDir={self._directory / 'data'}\n"
            "clientPortAddress=127.0.0.1\n"
            f"clientPort={self.port}\n"
            "tickTime=100\n"
            "minSessionTimeout=200\n"
            "maxSessionTimeout=60000\n"
            "maxClientCnxns=0\n"
            "admin.enableServer=false\n"
            "4lw.commands.whitelist=*\n"
        )

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when the server answers."""
        assert self._process is None, "the server is running"
        command = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
        command += ["-Dzookeeper.forceSync=no", "-cp", self._class_path]
        command += ["org.apache.zookeeper.server.quorum.QuorumPeerMain", str(self._config)]
        log = self._directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, cwd=self._directory)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            code = self._process.poll()
            assert code is None, f"the ZooKeeper server ended with {code}: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"no ZooKeeper server after {_START_S:.0f} s"
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server in order, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """The server keeps its connections and answers nothing until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._directory)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            os.kill(process.pid, number)
            os.kill(process.pid, signal.SIGCONT)
            process.wait(timeout=_START_S)

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1) as connection,
        ):
            connection.sendall(b"srvr")  # "ruok" says yes before clients are served
            return b"Mode:" in connection.makefile("rb").read()
        return False
