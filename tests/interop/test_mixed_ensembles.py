"""Mixed ensembles: bookies of both kinds hold one ledger."""

from collections.abc import Callable, Iterator

import pytest

from bkctl.errors import NoSuchLedgerOnMetadataServerError
from bkctl.types import MetadataState
from tests.interop.apache import Apache, JavaDriver, JavaError
from tests.interop.copies import assert_identical, copies_of
from tests.interop.mixed import two_of_each
from tests.interop.payload import expected, payload
from tests.interop.sides import SIZE, BkctlSide, Seen, Shape, Side, Sides, clients

COUNT = 1_000
SHAPES = [Shape(4, 4, 3), Shape(4, 3, 2), Shape(3, 3, 2), Shape(3, 3, 3)]  # each entry on both kinds
WRITERS = ["Java v2", "Java v3", "bkctl"]


@pytest.fixture(scope="module")
def uri(
    apache: Apache, new_cluster: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    uri = new_cluster()
    with two_of_each(apache, uri, tmp_path_factory.mktemp("mixed")):
        yield uri


@pytest.fixture(scope="module")
def sides(uri: str, driver: JavaDriver) -> Iterator[Sides]:
    with clients(driver, uri) as made:
        yield made


@pytest.fixture
def ours(sides: Sides) -> BkctlSide:
    return sides.ours


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest, sides: Sides) -> Side:
    return sides.named(request.param)


def others(sides: Sides, writer: Side) -> list[Side]:
    """The clients of the other kind."""
    return [side for side in sides if isinstance(side, BkctlSide) != isinstance(writer, BkctlSide)]


def whole(count: int) -> Seen:
    """A closed ledger of `count` entries."""
    return Seen(count - 1, count * SIZE, expected(0, count - 1, SIZE))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.ensemble}-{s.write}-{s.ack}")
def test_what_one_client_wrote_the_other_reads(sides: Sides, writer: Side, shape: Shape) -> None:
    ledger_id = writer.create(shape)
    writer.add(COUNT)
    assert writer.close_ledger() == COUNT - 1
    for reader in others(sides, writer):
        assert reader.see(ledger_id) == whole(COUNT)


@pytest.mark.parametrize("digest", ["CRC32C", "CRC32", "MAC", "DUMMY"])
@pytest.mark.parametrize(
    ("ensemble", "write"), [(4, 4), (4, 3), (3, 3)], ids=["on all four", "striped", "on three"]
)
def test_copies_on_bookies_of_both_kinds_are_the_same_bytes(
    ours: BkctlSide, writer: Side, digest: str, ensemble: int, write: int
) -> None:
    # Java's client does not wait for copies beyond the ack quorum, so here all are in the ack quorum.
    ledger_id = writer.create(Shape(ensemble, write, write, digest))
    writer.add(COUNT)
    writer.close_ledger()
    copies = copies_of(ours, ledger_id)
    assert len(copies) == COUNT
    assert all({name[0] for name in by_bookie} == {"b", "j"} for by_bookie in copies.values())
    assert_identical(copies, write)


def test_copies_of_a_deferred_ledger_are_the_same_bytes_once_forced(sides: Sides, ours: BkctlSide) -> None:
    java = sides.v3
    ledger_ids = [java.create(Shape(4, 4, 4), deferred=True), ours.create(Shape(4, 4, 4), deferred=True)]
    writers: list[Side] = [java, ours]
    for side in writers:
        side.add(COUNT)
        assert side.last_add_confirmed() == -1, "nothing is confirmed before it is durable"
    java.client.call("force", handle="w")
    ours.run(ours.writer.force())
    for side, ledger_id in zip(writers, ledger_ids, strict=True):
        assert side.last_add_confirmed() == COUNT - 1
        side.close_ledger()
        assert {reader.see(ledger_id) for reader in sides} == {whole(COUNT)}
        assert_identical(copies_of(ours, ledger_id), 4)


@pytest.mark.parametrize("writer", ["Java v3", "bkctl"], indirect=True)
def test_deferred_ledger_is_recovered_by_the_other_client(sides: Sides, writer: Side) -> None:
    ledger_id = writer.create(Shape(4, 3, 2), deferred=True)
    writer.add(COUNT)  # answered, not durable, and no bookie crashed: all are found
    ends = {side.recover(ledger_id) for side in others(sides, writer)}
    assert ends == {COUNT - 1}
    assert {side.see(ledger_id) for side in sides} == {whole(COUNT)}


@pytest.mark.parametrize("protocol", ["v2", "v3"])
def test_ledger_with_ids_chosen_by_a_java_writer_is_recovered_up_to_its_first_gap(
    sides: Sides, ours: BkctlSide, protocol: str
) -> None:
    java = sides.v2 if protocol == "v2" else sides.v3
    ledger_ids = []
    for _ in range(2):
        ledger_ids.append(java.create(Shape(4, 4, 4), adv=True))
        done = java.client.call("add", handle="w", ids=[*range(1, 300, 2), *range(0, 300, 2)], size=SIZE)
        assert (done["acked"], done["failed"]) == (300, 0)
        java.client.call("start_adds", handle="w", ids=[301, 302, 303], size=SIZE)  # 300 never comes
    assert ours.recover(ledger_ids[0]) == java.recover(ledger_ids[1]) == 299
    ours_recovered, java_recovered = ({side.see(i) for side in sides} for i in ledger_ids)
    # A ledger is as long as its last entry says, and 299 was the 150th to be sent. Java, which rewrote
    # nothing, takes the length from the last entry on a bookie, 303, and so counts beyond the end.
    assert ours_recovered == {Seen(299, 150 * SIZE, expected(0, 299, SIZE))}
    assert {seen.sha256 for seen in java_recovered} == {expected(0, 299, SIZE)}


def test_open_ledger_is_followed_by_a_java_reader_while_bkctl_writes(sides: Sides, ours: BkctlSide) -> None:
    java = sides.v3
    ledger_id = ours.create(Shape(4, 4, 3))  # of a striped one, the bookie that is asked may hear late
    ours.add(1)
    java.client.call("open", handle="tail", id=ledger_id)
    for entry_id in range(20):
        ours.add(1)  # carries the confirmation of the one before
        found = java.client.call("poll", handle="tail", entry=entry_id, timeout_ms=10_000)
        assert found["lac"] >= entry_id
        read = java.client.call("read", handle="tail", first=entry_id, last=entry_id)
        assert read["sha256"] == expected(entry_id, entry_id, SIZE)
    assert ours.close_ledger() == 20
    assert java.see(ledger_id) == whole(21)


@pytest.mark.parametrize("writer", ["Java v2", "Java v3"], indirect=True)
def test_open_ledger_is_followed_by_bkctl_while_a_java_client_writes(ours: BkctlSide, writer: Side) -> None:
    ledger_id = writer.create(Shape(4, 3, 2))
    reader = ours.run(ours.client.open_ledger_no_recovery(ledger_id))
    tail = reader.tail()

    async def following() -> bytes:
        return bytes((await anext(tail)).payload)

    bodies = []
    writer.add(1)
    for _ in range(20):
        writer.add(1)  # carries the confirmation of the one before
        bodies.append(ours.run(following()))
        assert not reader.closed
    writer.close_ledger()
    bodies.append(ours.run(following()))
    assert ours.run(anext(tail, None)) is None, "the end of the ledger ends the tail"
    assert bodies == [payload(entry_id, SIZE) for entry_id in range(21)]


def test_ledger_deleted_by_one_client_is_gone_for_the_other(sides: Sides, writer: Side) -> None:
    ledger_id = writer.create()
    writer.add(10)
    writer.close_ledger()
    [deleter, *_] = others(sides, writer)
    assert deleter.see(ledger_id) == whole(10)
    deleter.delete(ledger_id)
    with pytest.raises((JavaError, NoSuchLedgerOnMetadataServerError)) as error:
        writer.see(ledger_id)
    assert "NoSuchLedger" in getattr(error.value, "name", type(error.value).__name__)


def test_one_client_sees_the_others_custom_metadata_and_state(sides: Sides, ours: BkctlSide) -> None:
    java = sides.v3
    ledger_id = java.create(Shape(4, 3, 2), custom={"k": "djE="})
    assert ours.metadata(ledger_id).custom_metadata == {"k": b"v1"}
    assert ours.metadata(ledger_id).state is MetadataState.OPEN
    java.close_ledger()
    assert ours.metadata(ledger_id).state is MetadataState.CLOSED
