"""What the names of blends mean to every server."""

import pytest

from amalgam.domain.blend import blend_name
from amalgam.domain.expression import parse_expression
from amalgam.domain.recipe import Recipe
from amalgam.registry.blend_names import BlendNameRegistry
from amalgam.registry.database import Database
from tests.registry_fixtures import FakeClock


def recipe(weight: float) -> Recipe:
    return parse_expression(f"sql@1 + {weight}*json@2")


@pytest.fixture
def names(database: Database, clock: FakeClock) -> BlendNameRegistry:
    return BlendNameRegistry(database, clock)


async def test_a_recipe_comes_back_by_every_name_of_its_digest(names: BlendNameRegistry) -> None:
    kept = [recipe(weight) for weight in (0.25, 0.5, 0.75)]
    for one in kept:
        await names.remember(one.digest(), one)
        await names.remember(one.digest(), one)
    asked = [blend_name(one.digest(), digits) for one in kept for digits in (12, 13, 64)]
    found = await names.find([*asked, blend_name("0" * 64), blend_name("f" * 64)])
    assert list(found) == asked
    assert [one.digest() for one in found.values()] == [one.digest() for one in kept for _ in range(3)]
    assert await names.find([]) == {}


async def test_a_name_that_two_recipes_would_have_is_neithers(names: BlendNameRegistry) -> None:
    first, second = "a" * 12 + "0" * 52, "a" * 12 + "1" * 52
    await names.remember(first, recipe(0.25))
    await names.remember(second, recipe(0.5))
    assert await names.find([blend_name(first)]) == {}
    assert (await names.find([blend_name(first, 13)])).keys() == {blend_name(first, 13)}


async def test_what_nobody_uses_is_forgotten(names: BlendNameRegistry, clock: FakeClock) -> None:
    used, unused = recipe(0.25), recipe(0.5)
    for one in (used, unused):
        await names.remember(one.digest(), one)
    clock.advance(50)
    await names.remember(used.digest(), used)
    clock.advance(50)
    assert await names.forget_older(100) == 1
    assert (await names.find([blend_name(used.digest()), blend_name(unused.digest())])).keys() == {
        blend_name(used.digest())
    }
