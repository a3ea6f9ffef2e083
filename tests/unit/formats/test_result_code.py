import pytest

from bkctl import errors
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.result_code import ResultCode, code_of_error, error_from_rc, error_from_status

SPECIFIC = [code for code in ResultCode if code.error is not None]
GENERAL = [ResultCode.EBADREQ, ResultCode.EIO]


def test_names_and_statuses_are_those_of_the_protobuf_enum() -> None:
    assert {code.name: code.status for code in ResultCode} == dict(pb.StatusCode.items())


@pytest.mark.parametrize("code", SPECIFIC)
def test_a_code_with_one_meaning_keeps_it_both_ways(code: ResultCode) -> None:
    for error in (
        error_from_rc(code.rc, errors.ReadError, "bookie b1"),
        error_from_status(code.status, errors.WriteError, "bookie b1"),
    ):
        assert type(error) is code.error
        assert str(error) == f"bookie b1: {code.name}"
        assert code_of_error(error) is code


@pytest.mark.parametrize("code", GENERAL)
@pytest.mark.parametrize("default", [errors.ReadError, errors.WriteError, errors.SecurityError])
def test_other_codes_mean_what_the_operation_says(
    code: ResultCode, default: type[errors.BookKeeperError]
) -> None:
    assert type(error_from_rc(code.rc, default, "b")) is default
    assert type(error_from_status(code.status, default, "b")) is default


def test_unknown_numbers_are_errors_of_the_operation() -> None:
    assert str(error_from_rc(4711, errors.ReadError, "b")) == "b: unknown rc 4711"
    assert str(error_from_status(-1, errors.WriteError, "b")) == "b: unknown status -1"


def test_errors_without_a_code_are_answered_as_io_or_bad_request() -> None:
    assert code_of_error(errors.WriteError("x")) is ResultCode.EIO
    assert code_of_error(errors.UnexpectedConditionError("x")) is ResultCode.EIO
    assert code_of_error(errors.IncorrectParameterError("x")) is ResultCode.EBADREQ
    assert code_of_error(errors.IllegalOperationError("x")) is ResultCode.EBADREQ
