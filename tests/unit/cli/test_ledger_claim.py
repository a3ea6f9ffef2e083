"""A ledger made by `ledger create` gets one writer, whoever is faster."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from bkctl.cli.ledger_write import claimed
from bkctl.errors import ConflictError, LedgerClosedError, UnauthorizedAccessError
from bkctl.metadata.ledgers import LedgerManager
from bkctl.metadata.store import MetadataStore
from bkctl.types import BookieId, EntryId, LedgerId, LedgerMetadata, MetadataState, Segment, Versioned

MARK = {"bkctl.unclaimed": b"", "k": b"v"}
CREATED = LedgerMetadata(
    1, 1, 1, (Segment(EntryId(0), (BookieId("b:1"),)),), password=b"secret", custom_metadata=MARK
)


class Ledgers:
    """A ledger manager with which something happens right after each look at a ledger."""

    def __init__(
        self, store: MetadataStore, then: Callable[[LedgerManager, LedgerId], Awaitable[None]]
    ) -> None:
        self._ledgers = store.ledgers
        self._then = then
        self.write = store.ledgers.write

    async def read(self, ledger_id: LedgerId) -> Versioned[LedgerMetadata]:
        found = await self._ledgers.read(ledger_id)
        await self._then(self._ledgers, ledger_id)
        return found


async def nothing(ledgers: LedgerManager, ledger_id: LedgerId) -> None:
    pass


def claim(
    uri: str,
    metadata: LedgerMetadata,
    password: bytes | None = None,
    between: Callable[[LedgerManager, LedgerId], Awaitable[None]] = nothing,
) -> LedgerMetadata:
    """Create a ledger and become its writer; `between` happens between the look and the claim."""

    async def run() -> LedgerMetadata:
        store = await MetadataStore.open(uri)
        try:
            ledger_id, _ = await store.ledgers.create(metadata, creator_token=1)
            ledgers: Any = Ledgers(store, between)
            taken = await claimed(ledgers, ledger_id, password)
            assert taken == await store.ledgers.read(ledger_id)
            return taken.value
        finally:
            await store.close()

    return asyncio.run(run())


def test_the_claim_takes_the_mark_away_and_nothing_else(uri: str) -> None:
    assert claim(uri, CREATED) == replace(CREATED, custom_metadata={"k": b"v"}, creator_token=1)


def test_a_rival_that_claims_in_between_wins(uri: str) -> None:
    async def rival(ledgers: LedgerManager, ledger_id: LedgerId) -> None:
        found = await ledgers.read(ledger_id)
        await ledgers.write(ledger_id, replace(found.value, custom_metadata={}), found.version)

    with pytest.raises(ConflictError, match="another writer was faster"):
        claim(uri, CREATED, between=rival)


def test_a_ledger_without_the_mark_has_a_writer(uri: str) -> None:
    with pytest.raises(ConflictError, match="has or had a writer"):
        claim(uri, replace(CREATED, custom_metadata={}))


@pytest.mark.parametrize("state", [MetadataState.IN_RECOVERY, MetadataState.CLOSED])
def test_a_ledger_that_is_not_open_takes_no_more(uri: str, state: MetadataState) -> None:
    metadata = (
        CREATED.with_closed(EntryId(0), 1) if state is MetadataState.CLOSED else CREATED.with_state(state)
    )
    with pytest.raises(LedgerClosedError, match=state.name):
        claim(uri, metadata)


def test_the_claim_needs_the_right_password_if_one_is_given(uri: str) -> None:
    with pytest.raises(UnauthorizedAccessError):
        claim(uri, CREATED, b"guess")
    assert claim(uri, CREATED, b"secret").custom_metadata == {"k": b"v"}
