"""Every error that bkctl raises on purpose.

    BkctlError
    ├── BadInputError                what a person or file gave us cannot be used       (exit 2)
    ├── NotFoundError                what was named is not there                        (exit 3)
    ├── RefusedError                 a safety check or a missing confirmation           (exit 4)
    ├── ConflictError                something is in the way: exists, runs, not empty   (exit 8)
    ├── CorruptDataError             bytes on disk, wire or in metadata break a format  (exit 7)
    ├── BookieStartError             a bookie cannot start: cookie, directories, port
    ├── MetadataStoreError           the metadata store
    │   ├── MetadataUnreachableError     not there, timed out                           (exit 6)
    │   ├── MetadataLostError            session gone, or the store is not the one we opened
    │   ├── NoClusterError               no cluster at this root of the store        (exit 3)
    │   ├── NoNodeError · NodeExistsError · BadVersionError · NotEmptyError
    └── BookKeeperError              a code of the BookKeeper client protocol; see `code`
        └── one class per code

Source: spec wire section 5, spec replication section 2; upstream BKException.Code.
"""

from typing import ClassVar


class BkctlError(Exception):
    """`str(error)` is one line for a person: what happened, where, what to do."""


class BadInputError(BkctlError):
    """An argument, option, configuration value or input file cannot be used."""


class RefusedError(BkctlError):
    """A safety check said no, or a confirmation is missing."""


class NotFoundError(BkctlError):
    """What was named is not there."""


class ConflictError(BkctlError):
    """Something is in the way: it exists already, runs already, or is not empty."""


class CorruptDataError(BkctlError):
    """Bytes that were read break their format."""


class BookieStartError(BkctlError):
    """The bookie cannot start; `exit_code` is Java's (1 conf, 2 server, 4 registration, 5 bookie)."""

    def __init__(self, message: str, exit_code: int = 5) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MetadataStoreError(BkctlError):
    """The metadata store answered with an error."""


class MetadataUnreachableError(MetadataStoreError):
    """The store cannot be reached; the outcome of a write in flight is unknown."""


class MetadataLostError(MetadataStoreError):
    """The session is gone, or the store is not the one that was opened: never "an empty cluster"."""


class NoClusterError(MetadataStoreError, NotFoundError):
    """The store answers, but there is no BookKeeper cluster at this root."""


class NoNodeError(MetadataStoreError):
    """No node at this path."""


class NodeExistsError(MetadataStoreError):
    """There is already a node at this path; says nothing about who made it."""


class BadVersionError(MetadataStoreError):
    """The node has another version than the one expected."""


class NotEmptyError(MetadataStoreError):
    """The node has children."""


class BookKeeperError(BkctlError):
    """An outcome that has a code in the BookKeeper protocol.

    `code` is the client code number of upstream's BKException; `retriable` says whether the same
    call may succeed later without anybody's action.
    """

    code: ClassVar[int] = -999
    retriable: ClassVar[bool] = False


class ReadError(BookKeeperError):
    code = -1
    retriable = True


class NoBookieAvailableError(BookKeeperError):
    code = -3
    retriable = True


class DigestMatchError(BookKeeperError):
    code = -5


class NotEnoughBookiesError(BookKeeperError):
    code = -6
    retriable = True


class NoSuchLedgerError(BookKeeperError):
    """A bookie does not know the ledger."""

    code = -7


class BookieHandleNotAvailableError(BookKeeperError):
    """Connect failed, or the connection was lost: the outcome is unknown."""

    code = -8
    retriable = True


class LedgerRecoveryError(BookKeeperError):
    code = -10
    retriable = True


class LedgerClosedError(BookKeeperError):
    code = -11


class WriteError(BookKeeperError):
    code = -12
    retriable = True


class NoSuchEntryError(BookKeeperError):
    code = -13


class IncorrectParameterError(BookKeeperError):
    code = -14


class ProtocolVersionError(BookKeeperError):
    code = -16


class MetadataVersionError(BookKeeperError):
    code = -17


class ClientClosedError(BookKeeperError):
    code = -19


class LedgerExistsError(BookKeeperError):
    code = -20


class AddEntryQuorumTimeoutError(BookKeeperError):
    code = -21


class DuplicateEntryIdError(BookKeeperError):
    code = -22


class RequestTimeoutError(BookKeeperError):
    code = -23
    retriable = True


class SecurityError(BookKeeperError):
    code = -24


class NoSuchLedgerOnMetadataServerError(BookKeeperError):
    code = -25


class IllegalOperationError(BookKeeperError):
    code = -100


class LedgerFencedError(BookKeeperError):
    code = -101


class UnauthorizedAccessError(BookKeeperError):
    code = -102


class WriteOnReadOnlyBookieError(BookKeeperError):
    code = -104


class TooManyRequestsError(BookKeeperError):
    code = -105
    retriable = True


class LedgerIdOverflowError(BookKeeperError):
    code = -106


class MetadataSerializationError(BookKeeperError):
    code = -107


class DataUnknownError(BookKeeperError):
    code = -108
    retriable = True


class UnexpectedConditionError(BookKeeperError):
    code = -999


BY_CODE: dict[int, type[BookKeeperError]] = {cls.code: cls for cls in BookKeeperError.__subclasses__()}
