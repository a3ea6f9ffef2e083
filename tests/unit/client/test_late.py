"""Bookies that leave adds unanswered."""

from bkctl.client.late import LateBookies
from bkctl.types import BookieId

B1 = BookieId("b1")


def test_a_bookie_is_late_when_the_oldest_add_is() -> None:
    """1. Ten adds are sent by second 0.  2. None is answered: late at 1.0, not before."""
    late = LateBookies(1000, lambda admitted: [B1] if admitted >= 10 else [])
    assert [late.check(10, at) for at in (0.0, 0.2, 0.4, 0.6, 0.8)] == [[]] * 5
    assert late.check(10, 1.0) == [B1]


def test_newer_adds_do_not_make_a_bookie_late() -> None:
    """The first ten adds are answered, those of second 0.6 are not yet: late at 1.6."""
    late = LateBookies(1000, lambda admitted: [B1] if admitted > 10 else [])
    times = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6]
    found = {at: late.check(10 if at < 0.6 else 20, at) for at in times}
    assert [at for at in times if found[at]] == [1.6]


def test_a_resend_begins_the_time_anew() -> None:
    late = LateBookies(1000, lambda admitted: [B1])
    for at in (0.0, 0.3, 0.6):
        assert late.check(5, at) == []
    late.resent_to([B1], 0.8)
    assert [late.check(5, at) for at in (0.9, 1.2, 1.5)] == [[]] * 3
    assert late.check(5, 1.8) == [B1]


def test_nobody_is_late_because_we_were_stopped() -> None:
    """After a pause of our own, answers may wait unread in the sockets: they get a whole timeout again."""
    late = LateBookies(1000, lambda admitted: [B1])
    assert late.check(5, 0.0) == []
    assert late.check(5, 100.0) == []
    assert [late.check(5, 100 + at / 10) for at in (2, 4, 6, 8)] == [[]] * 4
    assert late.check(5, 101.0) == [B1]
