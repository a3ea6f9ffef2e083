"""Listing nodes that are named after bookies: `available`, `available/readonly`, `cookies`."""

from bkctl.errors import CorruptDataError, NoClusterError, NoNodeError
from bkctl.formats.bookie_id import is_bookie_id
from bkctl.metadata.api import MetadataTree, Watcher
from bkctl.types import BookieId

READONLY = "readonly"  # the child of `available` that is no bookie


async def list_bookies(
    tree: MetadataTree, root: str, parent: str, watcher: Watcher | None = None
) -> list[BookieId]:
    """Sorted ids of the bookies with a node at `root`/`parent`.

    A parent that is not there yet has no children, but a root that is not there is no empty cluster:
    raises NoClusterError. Raises CorruptDataError for a name that is no bookie id; Java hangs on it.
    """
    path = f"{root}/{parent}"
    try:
        names, _ = await tree.children(path, watcher)
    except NoNodeError:
        if await tree.exists(root) is None:
            raise no_cluster(root) from None
        if watcher is not None and await tree.exists(path, watcher) is not None:
            raise  # made this very moment
        return []
    for name in names:
        if name != READONLY and not is_bookie_id(name):
            raise CorruptDataError(f"{path}/{name}: this name is not a bookie id")
    return sorted(BookieId(name) for name in names if name != READONLY)


def no_cluster(root: str) -> NoClusterError:
    return NoClusterError(f"no cluster at {root} of the metadata store: run `bkctl cluster init` first")
