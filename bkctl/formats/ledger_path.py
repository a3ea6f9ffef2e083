"""Where the metadata of a ledger is: the path of a ledger id under each ledger manager, and back.

A path is the zero-padded decimal id cut into pieces, the last one after an `L`:

    flat                10 digits   L0123456789
    legacyhierarchical  2-4-4       01/2345/L6789
    longhierarchical    3-4-4-4-4   000/0000/0001/2345/L6789
    hierarchical        2-4-4 below id 2**31 - 1, 3-4-4-4-4 from there on

Source: spec metadata section 5; upstream StringUtils and the ledger managers.
"""

import enum
import re
from dataclasses import dataclass
from itertools import accumulate

from bkctl.errors import CorruptDataError, IncorrectParameterError
from bkctl.types import LedgerId

LEDGER_ID_MAX = LedgerId((1 << 63) - 1)
HYBRID_BOUNDARY = (1 << 31) - 1  # the first id in long form: 2**31 - 1, not 2**31. Do not change

SPECIAL_CHILDREN = frozenset(
    {"available", "cookies", "LAYOUT", "INSTANCEID", "underreplication", "idgen", "idgen-long"}
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How the digits of an id are cut; `digits` counts them piece by piece."""

    digits: tuple[int, ...]

    @property
    def total_digits(self) -> int:
        return sum(self.digits)

    def relative_path(self, ledger_id: int) -> str:
        text = f"{ledger_id:0{self.total_digits}d}"
        ends = list(accumulate(self.digits))
        ends[-1] = len(text)
        pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return "/".join([*pieces[:-1], "L" + pieces[-1]])

    def is_piece(self, depth: int, name: str) -> bool:
        """Whether `name` can stand at `depth` (0 is just below the root) of a path of this shape."""
        if depth == len(self.digits) - 1:
            if not name.startswith("L"):
                return False
            name = name[1:]
        return len(name) == self.digits[depth] and name.isascii() and name.isdigit()


FLAT_SHAPE = Shape((10,))
SHORT_SHAPE = Shape((2, 4, 4))
LONG_SHAPE = Shape((3, 4, 4, 4, 4))


class ManagerType(enum.Enum):
    """A ledger manager, by its name in a metadata service URI."""

    HIERARCHICAL = "hierarchical"
    LONG_HIERARCHICAL = "longhierarchical"
    FLAT = "flat"
    LEGACY_HIERARCHICAL = "legacyhierarchical"  # only in LAYOUT, never in a URI

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """In the order of the ids they hold."""
        return _SHAPES[self]


_SHAPES = {
    ManagerType.HIERARCHICAL: (SHORT_SHAPE, LONG_SHAPE),
    ManagerType.LONG_HIERARCHICAL: (LONG_SHAPE,),
    ManagerType.FLAT: (FLAT_SHAPE,),
    ManagerType.LEGACY_HIERARCHICAL: (SHORT_SHAPE,),
}


def ledger_path(root: str, manager: ManagerType, ledger_id: LedgerId) -> str:
    """Path of the metadata of `ledger_id`. Raises IncorrectParameterError: no such path.

    Ten digits are all that legacyhierarchical has; upstream truncates longer ids, so they collide.
    """
    if not 0 <= ledger_id <= LEDGER_ID_MAX:
        raise IncorrectParameterError(f"ledger id {ledger_id} is not in 0 .. 2**63 - 1")
    shape = manager.shapes[-1] if ledger_id >= HYBRID_BOUNDARY else manager.shapes[0]
    if shape is SHORT_SHAPE and len(str(ledger_id)) > shape.total_digits:
        raise IncorrectParameterError(f"ledger id {ledger_id} has more than 10 digits ({manager.value})")
    return f"{root}/{shape.relative_path(ledger_id)}"


def check_creatable(manager: ManagerType, ledger_id: LedgerId) -> None:
    """Raises IncorrectParameterError for an id that Java tools would not list afterwards."""
    if manager is ManagerType.FLAT and len(str(ledger_id)) > FLAT_SHAPE.total_digits:
        raise IncorrectParameterError(f"ledger id {ledger_id} has more than 10 digits (flat)")


_RELATIVE_PATH = re.compile(r"(?:[0-9]{2,4}/){0,4}L[0-9]{4,19}")


def parse_ledger_path(root: str, manager: ManagerType, path: str) -> LedgerId:
    """The ledger id of `path`. Raises CorruptDataError unless it is the path of one ledger."""
    relative = path.removeprefix(root + "/")
    if relative != path and _RELATIVE_PATH.fullmatch(relative):
        number = int(relative.replace("/", "").replace("L", ""))
        if number <= LEDGER_ID_MAX:
            ledger_id = LedgerId(number)
            try:
                if ledger_path(root, manager, ledger_id) == path:
                    return ledger_id
            except IncorrectParameterError:
                pass
    raise CorruptDataError(f"{path} is not the path of a ledger ({manager.value} below {root})")


def is_special_child(name: str) -> bool:
    """Whether a child of the root belongs to BookKeeper, but is no ledger and no parent of ledgers."""
    return name in SPECIAL_CHILDREN or name.startswith("ID-")


def is_ledger_child(manager: ManagerType, name: str) -> bool:
    """Whether a child of the root is a ledger (flat) or a parent of ledgers."""
    return any(shape.is_piece(0, name) for shape in manager.shapes)
