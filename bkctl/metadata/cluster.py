"""The life of a cluster in the metadata tree: look, initialise, format, delete.

Source: spec metadata sections 3 and 4; upstream ZKRegistrationManager, BookKeeperAdmin.
"""

import uuid
from dataclasses import dataclass

from bkctl.errors import BadInputError, CorruptDataError, NodeExistsError, NoNodeError, RefusedError
from bkctl.formats import layout as layout_format
from bkctl.formats.layout import Layout
from bkctl.formats.ledger_path import is_ledger_child, is_special_child
from bkctl.metadata.api import ANY_VERSION, CreateOp, MetadataTree
from bkctl.metadata.bookie_nodes import list_bookies, no_cluster

_INSTANCE_ID_BYTES_MAX = 256
_ID_GENERATORS = ("idgen", "idgen-long")


@dataclass(frozen=True, slots=True)
class InitResult:
    """`created` False: the cluster was there already, whole."""

    instance_id: str
    created: bool


async def read_layout(tree: MetadataTree, root: str) -> Layout | None:
    """None: no LAYOUT. Raises CorruptDataError."""
    try:
        node = await tree.get(f"{root}/LAYOUT")
    except NoNodeError:
        return None
    try:
        return layout_format.decode(node.data)
    except CorruptDataError as exc:
        raise CorruptDataError(f"{root}/LAYOUT: {exc}") from exc


async def read_instance_id(tree: MetadataTree, root: str) -> str | None:
    """None: the cluster has none (very old ones). Raises CorruptDataError."""
    try:
        data = (await tree.get(f"{root}/INSTANCEID")).data
    except NoNodeError:
        return None
    text = data[:_INSTANCE_ID_BYTES_MAX].decode("utf-8", "replace").strip()
    if not text.isprintable() or not text or len(data) > _INSTANCE_ID_BYTES_MAX:
        raise CorruptDataError(f"{root}/INSTANCEID is {text[:80]!r}, not an instance id")
    return text


async def init_cluster(tree: MetadataTree, root: str, layout: Layout) -> InitResult:
    """Make the cluster, or what is missing of it; run again, it does no harm.

    Raises BadInputError when the cluster has another ledger manager.
    """
    instance_id = str(uuid.uuid4())
    parent = root.rpartition("/")[0]
    if parent:
        await _create_if_missing(tree, parent)
    nodes = {
        root: b"",
        f"{root}/available": b"",
        f"{root}/available/readonly": b"",
        f"{root}/INSTANCEID": instance_id.encode(),
        f"{root}/LAYOUT": layout_format.encode(layout),
    }
    try:
        await tree.multi([CreateOp(path, data) for path, data in nodes.items()])
        return InitResult(instance_id, created=True)
    except NodeExistsError:
        pass
    found = await read_layout(tree, root)
    if found is not None:
        require_same_manager(found, layout, root)
    made = [await _create_if_missing(tree, path, data) for path, data in nodes.items()]
    return InitResult(await read_instance_id(tree, root) or instance_id, created=any(made))


def require_same_manager(found: Layout, wanted: Layout, root: str) -> None:
    """Raises BadInputError unless both keep ledgers at the same paths."""
    if found.manager is not wanted.manager:
        raise BadInputError(
            f"{root} uses the ledger manager {found.manager.value}, not {wanted.manager.value}; "
            f"attach with zk+{found.manager.value}, or without naming a manager"
        )


async def format_cluster(tree: MetadataTree, root: str, layout: Layout) -> str:
    """Forget all ledgers and cookies; the new instance id. The caller has asked for confirmation.

    Raises RefusedError while bookies are registered: they would delete their ledgers at once.
    Raises NoClusterError.
    """
    old_layout = await read_layout(tree, root)
    children = await _root_children(tree, root)
    await _refuse_live_bookies(tree, root)
    # A bookie that starts from here on must not find its old cluster, with its ledgers gone.
    instance_id = str(uuid.uuid4())
    await _delete_subtree(tree, f"{root}/INSTANCEID")
    await _delete_subtree(tree, f"{root}/cookies")
    managers = {(old_layout or layout).manager, layout.manager}
    for name in children:
        is_ledgers = any(is_ledger_child(manager, name) for manager in managers)
        if is_ledgers or name in _ID_GENERATORS or name.startswith("ID-"):
            await _delete_subtree(tree, f"{root}/{name}")
    for name in ("LAYOUT", "underreplication/ledgers", "underreplication/locks"):
        await _delete_subtree(tree, f"{root}/{name}")
    await _create_if_missing(tree, f"{root}/available/readonly")
    await tree.create(f"{root}/LAYOUT", layout_format.encode(layout))
    await tree.create(f"{root}/INSTANCEID", instance_id.encode())
    return instance_id


async def nuke_cluster(
    tree: MetadataTree, root: str, *, instance_id: str | None = None, force: bool = False
) -> None:
    """Delete everything below `root`, and `root`. Name the cluster's instance id, or `force` it.

    Raises RefusedError: another instance id, live bookies, or nodes that BookKeeper did not make.
    Raises NoClusterError.
    """
    if (instance_id is not None) == force:
        raise BadInputError("give either the instance id of the cluster, or force")
    layout = await read_layout(tree, root)
    children = await _root_children(tree, root)
    found_id = await read_instance_id(tree, root)
    if not force and instance_id != found_id:
        raise RefusedError(f"the cluster at {root} has the instance id {found_id}, not {instance_id}")
    await _refuse_live_bookies(tree, root)
    manager = (layout or layout_format.DEFAULT_LAYOUT).manager
    for name in children:
        if not is_special_child(name) and not is_ledger_child(manager, name):
            raise RefusedError(f"{root}/{name} is no node of BookKeeper: delete it yourself first")
    # Cookies first: without them no bookie starts. Instance id and layout last: so it can be run again.
    last = ("INSTANCEID", "LAYOUT")
    for name in ["cookies", *(name for name in children if name not in ("cookies", *last)), *last]:
        await _delete_subtree(tree, f"{root}/{name}")
    await _delete_subtree(tree, root)


async def _root_children(tree: MetadataTree, root: str) -> list[str]:
    await tree.sync(root)
    try:
        return sorted((await tree.children(root))[0])
    except NoNodeError:
        raise no_cluster(root) from None


async def _refuse_live_bookies(tree: MetadataTree, root: str) -> None:
    live = [
        *await list_bookies(tree, root, "available"),
        *await list_bookies(tree, root, "available/readonly"),
    ]
    if live:
        raise RefusedError(f"{len(live)} bookies are registered at {root} ({live[0]} …): stop them first")


async def _create_if_missing(tree: MetadataTree, path: str, data: bytes = b"") -> bool:
    try:
        await tree.create(path, data, parents=True)
    except NodeExistsError:
        return False
    return True


async def _delete_subtree(tree: MetadataTree, path: str) -> None:
    """Children first; what is not there is as good as deleted."""
    try:
        names, _ = await tree.children(path)
        for name in names:
            await _delete_subtree(tree, f"{path}/{name}")
        await tree.delete(path, ANY_VERSION)
    except NoNodeError:
        pass
