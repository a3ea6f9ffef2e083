"""Recorded sessions of a Java client, sent to our bookie as they were: the same answers, byte for byte.

Each session starts on a new bookie, as it writes what it reads. Requests leave in the recorded order, and
where an answer was recorded the replay waits for it, long polls included. `FREE_NUMBERS`, `FREE_ORDER` and
`MORE_ANSWERS` are all that may differ: not the connections, either, that the bookie closes.
"""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bkctl.formats import request_v3 as v3
from bkctl.formats.availability import Availability
from bkctl.formats.frame import V3_FIRST_BYTE, FrameCutter
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.server.lifecycle import BookieServer
from tests.shared_data import fixture_path
from tests.unit.server.harness import running_bookie

SESSIONS = sorted(path.stem for path in fixture_path("wire").glob("*.json"))

# (message, field): numbers of the machine or the clock, of which only the presence is compared.
FREE_NUMBERS = (
    ("getBookieInfoResponse", "totalDiskCapacity"),
    ("getBookieInfoResponse", "freeDiskSpace"),
    ("readResponse", "lacUpdateTimestamp"),
)
# {session: {connection: the answers, first and end, to requests that were sent at once}}
FREE_ORDER = {
    "v3-recovery-open": {2: (2, 4)},  # a recovery's add of the last entry, and its read behind it
}
# {session: {connection: number of answers beyond the recorded ones}}
MORE_ANSWERS = {
    "v3-list-of-entries": {1: 1},  # Java's DbLedgerStorage never answers this one; it must be answered
}
# {session: connections that the recorded bookie closed}: a v3 request where v2 was spoken.
CLOSED = {"v2-list-of-entries": {1}}
ANSWER_S_MAX = 10
SILENCE_S = 0.1  # how long nothing more must come


class Replay:
    """One session on one bookie; `piece_bytes`: how much of a request is sent at once, None for all of it."""

    def __init__(self, session: str, server: BookieServer, piece_bytes: int | None) -> None:
        self._description: dict[str, Any] = json.loads(fixture_path("wire", f"{session}.json").read_text())
        self._server = server
        self._piece_bytes = piece_bytes
        self._streams: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._unsent: dict[int, bytes] = {}
        self.recorded: dict[int, bytes] = {}
        self.received: dict[int, bytes] = {}
        self.closed: set[int] = set()

    async def run(self) -> None:
        for connection in self._description["connections"]:
            number = connection["conn"]
            self._unsent[number], self.recorded[number] = (
                fixture_path("wire", connection[side]["file"]).read_bytes() for side in ("c2b", "b2c")
            )
            self.received[number] = b""
        for event in self._description["timeline"]:
            if event.get("event") == "client connected":
                address = self._server.address
                self._streams[event["conn"]] = await asyncio.open_connection(address.host, address.port)
            elif event.get("dir") == "c2b":
                await self._send(event["conn"], event["bytes"])
            elif event.get("dir") == "b2c":
                await self._receive(event["conn"], event["bytes"])
        await asyncio.gather(*map(self._listen, self._streams))
        assert not any(self._unsent.values())

    async def _send(self, number: int, size_bytes: int) -> None:
        data, self._unsent[number] = self._unsent[number][:size_bytes], self._unsent[number][size_bytes:]
        _, writer = self._streams[number]
        for start in range(0, size_bytes, self._piece_bytes or size_bytes):
            writer.write(data[start : start + (self._piece_bytes or size_bytes)])
            await asyncio.sleep(0)  # the bookie is on this loop, too

    async def _receive(self, number: int, size_bytes: int) -> None:
        reader, _ = self._streams[number]
        async with asyncio.timeout(ANSWER_S_MAX):
            self.received[number] += await reader.readexactly(size_bytes)

    async def _listen(self, number: int) -> None:
        """What comes without having been recorded, and whether the bookie closed the connection."""
        reader, writer = self._streams[number]
        with suppress(TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                while data := await reader.read(1 << 16):
                    self.received[number] += data
                self.closed.add(number)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def answers(stream: bytes) -> list[bytes]:
    """The frames of a stream, free numbers made 1."""
    cutter = FrameCutter()
    frames = [_without_free_numbers(body) for body in cutter.cut(stream)]
    assert cutter.pending_bytes == 0
    return frames


def _without_free_numbers(body: bytes) -> bytes:
    if body[0] != V3_FIRST_BYTE:
        return body
    response = v3.decode_response(body)
    found = [
        (getattr(response, message), field)
        for message, field in FREE_NUMBERS
        if response.HasField(message) and getattr(response, message).HasField(field)
    ]
    for message, field in found:
        assert getattr(message, field) > 0
        setattr(message, field, 1)
    return response.SerializeToString() if found else body


def replayed(session: str, directory: Path, piece_bytes: int | None = None) -> Replay:
    async def scenario() -> Replay:
        async with running_bookie(directory) as server:
            replay = Replay(session, server, piece_bytes)
            await replay.run()
            return replay

    return asyncio.run(scenario())


@pytest.mark.parametrize("piece_bytes", [None, 1], ids=["as recorded", "byte by byte"])
@pytest.mark.parametrize("session", SESSIONS)
def test_the_answers_are_the_recorded_ones(session: str, piece_bytes: int | None, tmp_path: Path) -> None:
    replay = replayed(session, tmp_path, piece_bytes)
    for number, recorded in replay.recorded.items():
        found, wanted = answers(replay.received[number]), answers(recorded)
        first, end = FREE_ORDER.get(session, {}).get(number, (0, 0))
        for frames in (found, wanted):
            frames[first:end] = sorted(frames[first:end])
        assert found[: len(wanted)] == wanted
        assert len(found) - len(wanted) == MORE_ANSWERS.get(session, {}).get(number, 0)
    assert replay.closed == CLOSED.get(session, set())


def test_the_list_that_java_does_not_give_names_every_entry(tmp_path: Path) -> None:
    """What stands in the place of the answer that is missing in the recording."""
    session = "v3-list-of-entries"
    replay = replayed(session, tmp_path)
    *others, last = answers(replay.received[1])
    assert others == answers(replay.recorded[1])
    response = v3.decode_response(last)
    assert response.header.operation == pb.GET_LIST_OF_ENTRIES_OF_LEDGER
    listed = response.getListOfEntriesOfLedgerResponse
    assert (response.status, listed.status) == (pb.EOK, pb.EOK)
    assert list(Availability.decode(listed.availabilityOfEntriesOfLedger)) == list(range(len(others)))


def test_the_exceptions_are_needed_no_more_than_they_are_used(tmp_path: Path) -> None:
    """A free number that no session has, or an exception of no session, would hide something one day."""
    present = set()
    for session in SESSIONS:
        for file in fixture_path("wire").glob(f"{session}.conn*.b2c.bin"):
            for body in FrameCutter().cut(file.read_bytes()):
                if body[0] == V3_FIRST_BYTE:
                    response = v3.decode_response(body)
                    present |= {
                        (message, field)
                        for message, field in FREE_NUMBERS
                        if response.HasField(message) and getattr(response, message).HasField(field)
                    }
    assert present == set(FREE_NUMBERS)
    assert {*FREE_ORDER, *MORE_ANSWERS, *CLOSED} <= set(SESSIONS)
