"""Cookies in the tree."""

import pytest

from bkctl.errors import BadVersionError, CorruptDataError, NodeExistsError, NoNodeError
from bkctl.formats.cookie import make_cookie
from bkctl.metadata.cookies import CookieManager
from bkctl.types import Versioned
from tests.unit.metadata.world import ROOT, A, B, cluster

COOKIE = make_cookie(A, ["/j"], ["/l1"], "id")
GROWN = make_cookie(A, ["/j"], ["/l1", "/l2"], "id")


async def test_a_cookie_is_created_once_and_updated_by_version() -> None:
    _, tree = await cluster()
    cookies = CookieManager(tree, ROOT)
    assert await cookies.read(A) is None
    await cookies.create(A, COOKIE)
    assert await cookies.read(A) == Versioned(COOKIE, 0)
    with pytest.raises(NodeExistsError):
        await cookies.create(A, GROWN)
    assert await cookies.update(A, GROWN, 0) == Versioned(GROWN, 1) == await cookies.read(A)
    with pytest.raises(BadVersionError):
        await cookies.update(A, COOKIE, 0)
    with pytest.raises(BadVersionError):
        await cookies.delete(A, 0)
    await cookies.delete(A, 1)
    with pytest.raises(NoNodeError):
        await cookies.delete(A)
    with pytest.raises(NoNodeError):
        await cookies.update(A, COOKIE, 1)


async def test_a_broken_cookie_is_never_a_missing_one() -> None:
    _, tree = await cluster()
    cookies = CookieManager(tree, ROOT)
    await tree.create(f"{ROOT}/cookies/{B}", b"", parents=True)
    with pytest.raises(CorruptDataError, match="/ledgers/cookies/b:3181: "):
        await cookies.read(B)
    assert await cookies.list() == [B]
