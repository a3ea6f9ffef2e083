"""What the exit code of `bkctl` says. Scripts depend on these numbers: do not change them.

`bookie start` is the exception: it keeps the codes of Java's BookieServer (1 configuration,
2 server, 4 registration, 5 bookie), because service managers already know those.
"""

import enum

from bkctl import errors


class ExitCode(enum.IntEnum):
    DONE = 0
    FAILED = 1  # unexpected
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4  # a safety check, or a missing confirmation
    NOT_AUTHORISED = 5
    UNREACHABLE = 6  # metadata store or bookies
    INTEGRITY = 7  # digest, corruption, missing replica
    CONFLICT = 8  # version changed, fenced, cookie mismatch, already there
    PARTIAL = 9  # some items failed; the output lists them
    UNHEALTHY = 10
    TIMED_OUT = 124  # --timeout
    INTERRUPTED = 130
    CLOSED_PIPE = 141
    TERMINATED = 143  # by SIGTERM or SIGHUP


_BY_CLASS: dict[type[Exception], ExitCode] = {
    errors.BadInputError: ExitCode.USAGE,
    errors.NotFoundError: ExitCode.NOT_FOUND,
    errors.RefusedError: ExitCode.REFUSED,
    errors.ConflictError: ExitCode.CONFLICT,
    errors.CorruptDataError: ExitCode.INTEGRITY,
    errors.MetadataUnreachableError: ExitCode.UNREACHABLE,
    errors.MetadataLostError: ExitCode.UNREACHABLE,
    errors.NoNodeError: ExitCode.NOT_FOUND,
    errors.NoClusterError: ExitCode.NOT_FOUND,
    errors.NodeExistsError: ExitCode.CONFLICT,
    errors.BadVersionError: ExitCode.CONFLICT,
    errors.NotEmptyError: ExitCode.CONFLICT,
    errors.ReadError: ExitCode.UNREACHABLE,
    errors.NoBookieAvailableError: ExitCode.UNREACHABLE,
    errors.DigestMatchError: ExitCode.INTEGRITY,
    errors.NotEnoughBookiesError: ExitCode.UNREACHABLE,
    errors.NoSuchLedgerError: ExitCode.NOT_FOUND,
    errors.BookieHandleNotAvailableError: ExitCode.UNREACHABLE,
    errors.LedgerRecoveryError: ExitCode.UNREACHABLE,
    errors.LedgerClosedError: ExitCode.CONFLICT,
    errors.WriteError: ExitCode.UNREACHABLE,
    errors.NoSuchEntryError: ExitCode.NOT_FOUND,
    errors.IncorrectParameterError: ExitCode.USAGE,
    errors.MetadataVersionError: ExitCode.CONFLICT,
    errors.LedgerExistsError: ExitCode.CONFLICT,
    errors.AddEntryQuorumTimeoutError: ExitCode.UNREACHABLE,
    errors.DuplicateEntryIdError: ExitCode.CONFLICT,
    errors.RequestTimeoutError: ExitCode.UNREACHABLE,
    errors.SecurityError: ExitCode.NOT_AUTHORISED,
    errors.NoSuchLedgerOnMetadataServerError: ExitCode.NOT_FOUND,
    errors.IllegalOperationError: ExitCode.REFUSED,
    errors.LedgerFencedError: ExitCode.CONFLICT,
    errors.UnauthorizedAccessError: ExitCode.NOT_AUTHORISED,
    errors.WriteOnReadOnlyBookieError: ExitCode.CONFLICT,
    errors.TooManyRequestsError: ExitCode.UNREACHABLE,
    errors.MetadataSerializationError: ExitCode.INTEGRITY,
    errors.DataUnknownError: ExitCode.UNREACHABLE,
}


def exit_code_of(error: Exception) -> int:
    """The code for `error`: that of its nearest listed class; 1 for every other error."""
    if isinstance(error, errors.BookieStartError):
        return error.exit_code
    for cls in type(error).__mro__:
        if cls in _BY_CLASS:
            return _BY_CLASS[cls]
    return ExitCode.FAILED


def java_shell_code(code: int) -> int:
    """What Java's BookieShell exits with where ours is `code`: any failure of its own is 255."""
    return 255 if 0 < code < ExitCode.INTERRUPTED else code
