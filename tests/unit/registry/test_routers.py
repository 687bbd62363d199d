"""Routers in the registry: an alias carries one; its numbers lie apart, come back, and are forgotten."""

import pytest

from amalgam.domain.alias import AliasTarget
from amalgam.domain.routing import Router, RouterNumbers
from amalgam.registry import alias_rows
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.database import Database
from amalgam.registry.routers import RouterRegistry

BASE = (AliasTarget(model="base", weight=1),)


def router(digest: str) -> tuple[Router, RouterNumbers]:
    made = Router(
        digest=digest, candidates=("base",), otherwise="base", examples=(3,), threshold=0.2, margin=0, blend=False,
        recognised=1, kept_out=1,
    )  # fmt: skip
    return made, RouterNumbers(digest, {"base": ("ä", "b", "c")}, b"\x00\xff" * 3)


async def test_an_alias_carries_its_router_and_the_numbers_lie_apart(
    aliases: AliasRegistry, database: Database
) -> None:
    routers = RouterRegistry(database)
    first, numbers = router("one")
    made, is_new = await aliases.put("auto", BASE, router=(first, numbers))
    assert (made.router, is_new) == (first, True)
    assert await aliases.get("auto") == made
    assert await routers.numbers(["one", "two"]) == {"one": numbers}
    assert await aliases.put("auto", BASE, router=(first, numbers)) == (made, False)
    plain, _ = await aliases.put("auto", BASE)
    assert (plain.revision, plain.router) == (2, None)
    back = await aliases.rollback("auto")
    assert (back.revision, back.router) == (3, first)
    assert [change.router for change in (await aliases.history("auto")).items] == [first, None, first]
    await aliases.delete("auto")
    assert (await aliases.rollback("auto")).router == first


async def test_numbers_that_no_history_names_are_forgotten(
    aliases: AliasRegistry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias_rows, "MAX_CHANGES_KEPT", 2)
    for digest in ("one", "two", "three"):
        await aliases.put("auto", BASE, router=router(digest))
    assert set(await RouterRegistry(database).numbers(["one", "two", "three"])) == {"two", "three"}
