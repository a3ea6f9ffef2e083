"""Every error has the exit code that scripts rely on."""

import pytest

from bkctl import errors
from bkctl.cli.exit_codes import ExitCode, exit_code_of

NUMBERS = {
    "DONE": 0,
    "FAILED": 1,
    "USAGE": 2,
    "NOT_FOUND": 3,
    "REFUSED": 4,
    "NOT_AUTHORISED": 5,
    "UNREACHABLE": 6,
    "INTEGRITY": 7,
    "CONFLICT": 8,
    "PARTIAL": 9,
    "UNHEALTHY": 10,
    "TIMED_OUT": 124,
    "INTERRUPTED": 130,
    "CLOSED_PIPE": 141,
    "TERMINATED": 143,
}


def test_the_numbers_never_change() -> None:
    assert {code.name: code.value for code in ExitCode} == NUMBERS


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadInputError, 2),
        (errors.IncorrectParameterError, 2),
        (errors.NoSuchLedgerOnMetadataServerError, 3),
        (errors.NoSuchEntryError, 3),
        (errors.NoClusterError, 3),
        (errors.RefusedError, 4),
        (errors.UnauthorizedAccessError, 5),
        (errors.MetadataUnreachableError, 6),
        (errors.BookieHandleNotAvailableError, 6),
        (errors.NotEnoughBookiesError, 6),
        (errors.DigestMatchError, 7),
        (errors.CorruptDataError, 7),
        (errors.MetadataSerializationError, 7),
        (errors.LedgerFencedError, 8),
        (errors.LedgerExistsError, 8),
        (errors.ConflictError, 8),
        (errors.UnexpectedConditionError, 1),
        (errors.BkctlError, 1),
    ],
)
def test_code_of_each_class(error: type[errors.BkctlError], code: int) -> None:
    assert exit_code_of(error("x")) == code


def test_only_codes_without_a_meaning_of_their_own_are_unexpected() -> None:
    unexpected = {
        cls.__name__ for cls in errors.BY_CODE.values() if exit_code_of(cls("x")) == ExitCode.FAILED
    }
    assert unexpected == {
        "ClientClosedError",
        "LedgerIdOverflowError",
        "ProtocolVersionError",
        "UnexpectedConditionError",
    }


def test_a_subclass_has_the_code_of_its_class() -> None:
    class StaleLayoutError(errors.CorruptDataError):
        pass

    assert exit_code_of(StaleLayoutError("x")) == ExitCode.INTEGRITY


def test_a_bookie_that_cannot_start_keeps_the_code_of_java() -> None:
    assert exit_code_of(errors.BookieStartError("x", 4)) == 4
