"""Result codes of the bookie protocol, and the errors they stand for.

The numbers are on the wire: do not change.
Source: spec wire section 5; upstream BookieProtocol, BKException.Code.
"""

import enum

from bkctl.errors import (
    BookKeeperError,
    DataUnknownError,
    IllegalOperationError,
    IncorrectParameterError,
    LedgerFencedError,
    NoSuchEntryError,
    NoSuchLedgerError,
    ProtocolVersionError,
    TooManyRequestsError,
    UnauthorizedAccessError,
    WriteOnReadOnlyBookieError,
)


class ResultCode(enum.Enum):
    """(v2 rc, v3 status, error class); None: what the code means depends on the operation."""

    EOK = (0, 0, None)
    ENOLEDGER = (1, 402, NoSuchLedgerError)
    ENOENTRY = (2, 403, NoSuchEntryError)
    EBADREQ = (100, 404, None)
    EIO = (101, 501, None)
    EUA = (102, 502, UnauthorizedAccessError)
    EBADVERSION = (103, 503, ProtocolVersionError)
    EFENCED = (104, 504, LedgerFencedError)
    EREADONLY = (105, 505, WriteOnReadOnlyBookieError)
    ETOOMANYREQUESTS = (106, 506, TooManyRequestsError)
    # Java's v2 clients close the connection on rc 107; a kind server sends EIO to them instead.
    EUNKNOWNLEDGERSTATE = (107, 507, DataUnknownError)

    def __init__(self, rc: int, status: int, error: type[BookKeeperError] | None) -> None:
        self.rc = rc
        self.status = status
        self.error = error


BY_RC = {code.rc: code for code in ResultCode}
BY_STATUS = {code.status: code for code in ResultCode}
_BY_ERROR = {code.error: code for code in ResultCode if code.error is not None}


def error_from_rc(rc: int, default: type[BookKeeperError], where: str) -> BookKeeperError:
    """The error of a v2 `rc` other than 0.

    `default` is the error of the operation for EBADREQ, EIO and unknown numbers: ReadError,
    WriteError or SecurityError. `where` names bookie, ledger and entry for the message.
    """
    return _error(BY_RC.get(rc), f"rc {rc}", default, where)


def error_from_status(status: int, default: type[BookKeeperError], where: str) -> BookKeeperError:
    """The error of a v3 `status` other than 0; see `error_from_rc`."""
    return _error(BY_STATUS.get(status), f"status {status}", default, where)


def _error(
    code: ResultCode | None, number: str, default: type[BookKeeperError], where: str
) -> BookKeeperError:
    if code is None:
        return default(f"{where}: unknown {number}")
    assert code is not ResultCode.EOK, where
    return (code.error or default)(f"{where}: {code.name}")


def code_of_error(error: BookKeeperError) -> ResultCode:
    """The code with which a bookie answers `error`; EIO unless another one says more."""
    if isinstance(error, IllegalOperationError | IncorrectParameterError):
        return ResultCode.EBADREQ
    return _BY_ERROR.get(type(error), ResultCode.EIO)
