"""What a client connection has learnt from the bytes of a bookie."""

from typing import Any, NamedTuple

from bkctl.errors import BookKeeperError


class AddsStored(NamedTuple):
    """The bookie stores these consecutive entries; durable unless their sync was deferred."""

    ledger_id: int
    first_entry_id: int
    last_entry_id: int


class AddRefused(NamedTuple):
    """The bookie refused this entry."""

    ledger_id: int
    entry_id: int
    error: BookKeeperError


class Answer(NamedTuple):
    """The answer to a request other than an add; `value` is a BookKeeperError if it failed."""

    request_id: int
    value: Any


Event = AddsStored | AddRefused | Answer


class LongPollAnswer(NamedTuple):
    """`entry_id` -1: no entry was delivered; `max_lac` then says whether there is news elsewhere."""

    entry_id: int
    body: bytes | None
    max_lac: int | None
