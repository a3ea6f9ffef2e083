"""A power loss at every change of the disk, in turn: nothing that was answered is lost."""

import random
from collections.abc import Callable, Collection
from typing import Any
from unittest.mock import patch

import pytest

from bkctl.errors import BkctlError, LedgerFencedError
from bkctl.formats import entry_log as fmt
from bkctl.server.storage.checkpoint import Checkpointer
from bkctl.server.storage.compaction import Compactor, _Copy
from bkctl.server.storage.directory_storage import DirectoryStorage
from bkctl.server.storage.entry_log import log_ids
from tests.sim.disk import Disk, Loss, PowerLossError, SimFs
from tests.sim.storage_node import StorageNode

Work = Callable[[StorageNode], None]


def adds_and_fences(node: StorageNode) -> None:
    """Pipelined adds of three ledgers, a fence, an explicit LAC; no checkpoint."""
    for entry_id in range(6):
        for ledger_id in (1, 2, 3):
            node.add(ledger_id, entry_id, bytes([entry_id]) * 40)
        if entry_id % 2:
            node.sync()
    node.fence(2)
    node.write_lac(1, 4)
    node.fence(9)  # nothing was ever added to it
    node.sync()


def checkpoints(node: StorageNode) -> None:
    """Flushes, marks, journals and entry logs that are rotated and deleted, in the middle of adds."""
    for entry_id in range(12):
        for ledger_id in (1, 2):
            node.add(ledger_id, entry_id, bytes([entry_id]) * 200)
        node.sync()
        if entry_id % 4 == 3:
            node.checkpoint()
        if entry_id == 6:
            node.add(3, 0, b"the only one")
            node.fence(3)
            node.write_lac(1, 5)
    node.sync()
    node.checkpoint()
    node.checkpoint()


def overwrites(node: StorageNode) -> None:
    """The same entry again after a checkpoint: what was answered last is what is read."""
    for copy in range(3):
        for entry_id in range(3):
            node.add(1, entry_id, bytes([copy]) * 50)
        node.sync()
        node.checkpoint()


def collections(node: StorageNode) -> None:
    """Ledgers are deleted, dead logs too, sparse ones are compacted, while entries are added again."""
    for entry_id in range(8):
        for ledger_id in (1, 2, 3):
            node.add(ledger_id, entry_id, bytes([entry_id]) * 300)
        node.sync()
        if entry_id % 4 == 3:
            node.checkpoint()
    node.fence(3)
    node.add(1, 2, b"again")
    node.sync()
    node.delete(2, 3)
    node.collect(0.8)
    node.add(1, 3, b"again, too")
    node.sync()
    node.checkpoint()
    node.delete(1)
    node.add(4, 0, b"the last one")
    node.sync()
    node.collect(0.8)
    node.checkpoint()


WORK: list[Work] = [adds_and_fences, checkpoints, overwrites, collections]


def run_until(work: Work, operation: int, disk: Disk, **layout: int) -> StorageNode:
    """Start on `disk` and work until its `operation`th change (from 0), at which power goes."""

    def watch(_kind: str, _name: str) -> None:
        if disk.operations > operation:
            disk.lose_power()

    disk.operation = watch
    node = StorageNode(disk, **layout)
    try:
        node.start()
        work(node)
    except PowerLossError:
        pass
    node.close()
    return node


def changes(work: Work, **layout: int) -> int:
    """How many changes the work makes when nothing goes wrong."""
    disk = Disk()
    run_until(work, 1 << 60, disk, **layout)
    assert not disk.off
    return disk.operations


def check(before: StorageNode, after: StorageNode, where: str) -> None:
    """Everything that `before` had answered is there after the restart."""
    for (ledger_id, entry_id), entry in before.acked.items():
        if ledger_id in before.deleting:
            continue
        found = after.read(ledger_id, entry_id)
        assert isinstance(found, bytes), f"{where}: entry {entry_id} of ledger {ledger_id} is lost: {found}"
        copies = before.sent[ledger_id, entry_id]
        newer = copies[copies.index(entry) :]  # sent, not answered: may be there or not
        assert found in newer, f"{where}: entry {entry_id} of ledger {ledger_id} is an older copy"
    for ledger_id in before.deleted:
        assert after.storage.ledger(ledger_id) is None, f"{where}: ledger {ledger_id} is back"
    for ledger_id in before.fenced:
        if ledger_id in before.deleting and after.storage.fenced_and_deleted(ledger_id):
            continue
        descriptor = after.storage.ledger(ledger_id)
        assert descriptor is not None, f"{where}: ledger {ledger_id} and its fence are lost"
        assert descriptor.fenced, f"{where}: the fence of ledger {ledger_id} is lost"
    for ledger_id, body in before.explicit_lacs.items():
        descriptor = after.storage.ledger(ledger_id)
        assert descriptor is not None
        assert descriptor.explicit_lac == body, f"{where}: the explicit LAC of ledger {ledger_id}"


@pytest.mark.parametrize("layout", [{}, {"journals": 2, "ledgers": 2}], ids=["one directory", "two of each"])
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_nothing_answered_is_lost_by_a_power_loss(work: Work, layout: dict[str, int]) -> None:
    count = changes(work, **layout)
    assert count > 15
    for operation in range(count + 1):
        for loss in Loss:
            disk = Disk()
            before = run_until(work, operation, disk, **layout)
            after = StorageNode(disk.after_power_loss(loss, random.Random(operation)), **layout)
            where = f"change {operation} of {count}, the disk keeps {loss.value}"
            try:
                after.start()
            except BkctlError as error:
                raise AssertionError(f"{where}: no start: {error}") from error
            check(before, after, where)
            after.close()


def collected_again(loss: Loss) -> None:
    """Power is lost at each change of a collection; the next collection goes on from there."""
    count = changes(collections)
    for operation in range(count + 1):
        disk = Disk()
        before = run_until(collections, operation, disk)
        after = StorageNode(disk.after_power_loss(loss, random.Random(operation)))
        where = f"change {operation} of {count}, the disk keeps {loss.value}"
        after.start()
        after.delete(*after.storage.directories[0].ledgers.keys() & before.deleting)
        after.collect(0.8)
        check(before, after, where)
        left = [path.name for path in after.disk.names if "compact" in path.name]
        assert not left, f"{where}: {left}"
        after.close()


@pytest.mark.parametrize("loss", Loss, ids=lambda loss: loss.name)
def test_a_collection_goes_on_after_a_power_loss(loss: Loss) -> None:
    collected_again(loss)


def test_a_collection_that_lost_power_twice_goes_on() -> None:
    count = changes(collections)
    for operation in range(count // 2, count, 5):
        disk = Disk()
        before = run_until(collections, operation, disk)
        image = disk.after_power_loss(Loss.TORN, random.Random(operation))

        def again(node: StorageNode) -> None:
            node.delete(*node.storage.directories[0].ledgers.keys() & before.deleting)  # noqa: B023
            node.collect(0.8)

        second_count = changes_of(again, image)
        for second in range(0, second_count, 3):
            between = image.after_power_loss(Loss.NOTHING, random.Random(0))
            run_until(again, second, between)
            after = StorageNode(between.after_power_loss(Loss.TORN, random.Random(second)))
            after.start()
            again(after)
            check(before, after, f"changes {operation} and {second}")
            after.close()


def changes_of(work: Work, image: Disk) -> int:
    disk = image.after_power_loss(Loss.NOTHING, random.Random(0))
    run_until(work, 1 << 60, disk)
    return disk.operations


def test_an_old_writer_finds_its_ledger_fenced_after_deletion_and_power_loss() -> None:
    disk = Disk()
    run_until(collections, 1 << 60, disk)
    after = StorageNode(disk.after_power_loss(Loss.ALL, random.Random(1)))
    after.start()
    with pytest.raises(LedgerFencedError):
        after.add(3, 8, b"late")
    assert after.storage.ledger(3) is None
    after.close()


def _source_first(self: Compactor, log_id: int, source_ids: Collection[int]) -> None:
    """M20 (1534): the sources are deleted before the index is durable."""
    with patch.object(DirectoryStorage, "sync_locations", lambda _self: None):
        _MOVE(self, log_id, source_ids)


def _unsynced_copy(self: Any) -> None:
    self._fs.write(self._fd, *fmt.pack_seal(self.position, len(self._ledger_bytes)))


_MOVE = Compactor._move


@pytest.mark.parametrize(
    ("target", "name", "defect"),
    [
        (Compactor, "_move", _source_first),
        (_Copy, "finish", _unsynced_copy),
        (DirectoryStorage, "closed_log_ids", lambda self: log_ids(self._directory, self._fs)),
    ],
    ids=["M20", "copy not synced", "open logs"],
)
def test_a_known_defect_of_collections_is_found(
    target: type, name: str, defect: Callable[..., object]
) -> None:
    with patch.object(target, name, defect), pytest.raises((AssertionError, BkctlError, OSError)):
        collected_again(Loss.ALL)


@pytest.mark.parametrize("loss", [Loss.ALL, Loss.TAIL, Loss.TORN], ids=lambda loss: loss.name)
def test_nothing_is_lost_by_a_second_power_loss_during_the_replay(loss: Loss) -> None:
    count = changes(checkpoints)
    rng = random.Random(5)
    for operation in range(0, count + 1, 3):
        disk = Disk()
        before = run_until(checkpoints, operation, disk)
        image = disk.after_power_loss(loss, random.Random(operation))
        again = image.after_power_loss(Loss.NOTHING, rng)
        start_changes = changes_of_start(again)
        for second in range(start_changes + 1):
            between = image.after_power_loss(Loss.NOTHING, rng)
            run_until(lambda _node: None, second, between)
            after = StorageNode(between.after_power_loss(loss, random.Random(second)))
            after.start()
            check(before, after, f"changes {operation} and {second}")
            after.close()


def changes_of_start(disk: Disk) -> int:
    node = StorageNode(disk)
    node.start()
    node.close()
    return disk.operations


async def _flush_first_directory(self: Checkpointer) -> None:
    """M19 (3329): the checkpoint of one directory moves the mark of all."""
    directory = self._storage.directories[0]
    if directory.flushing is not None:
        directory.flush()
        directory.release()
    for other in self._storage.directories[1:]:
        other._frozen = None


def _flush_without_ledgers(self: DirectoryStorage) -> None:
    """T1: the mark moves although what is known of ledgers was not made durable."""
    frozen = self._frozen
    if frozen is not None:
        frozen.changed.clear()
    _FLUSH(self)


_FLUSH = DirectoryStorage.flush


@pytest.mark.parametrize(
    ("target", "name", "defect"),
    [
        (Checkpointer, "_flush", _flush_first_directory),
        (DirectoryStorage, "flush", _flush_without_ledgers),
        (SimFs, "fdatasync", lambda _self, _fd: None),
    ],
    ids=["M19", "T1", "no sync"],
)
def test_a_known_defect_is_found(target: type, name: str, defect: Callable[..., object]) -> None:
    layout = {"journals": 2, "ledgers": 2}
    with patch.object(target, name, defect):
        disk = Disk()
        before = run_until(checkpoints, 1 << 60, disk, **layout)
        after = StorageNode(disk.after_power_loss(Loss.ALL, random.Random(1)), **layout)

        def restart() -> None:
            after.start()
            check(before, after, "at the end")

        with pytest.raises((AssertionError, BkctlError)):
            restart()
