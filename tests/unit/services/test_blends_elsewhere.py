"""Blends of engines elsewhere, as a front knows them."""

from pathlib import Path

import pytest

from amalgam.domain.blend import SHORT_DIGITS, blend_name
from amalgam.domain.blend_plan import BlendPlan
from amalgam.domain.expression import parse_expression
from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.blends import BlendFailed
from amalgam.services.blend_tier import Build
from amalgam.services.blends_elsewhere import BlendsElsewhere
from tests.api.fake_engine import FakeEngine

A, LIKE_A = "a" * 64, "a" * SHORT_DIGITS + "b" * 52


class Front:
    def __init__(self) -> None:
        self.blends = BlendsElsewhere(FakeEngine(), 1 << 20)
        self.begun = self.released = 0

    async def ask(self, digest: str, client: str = "one", inputs: frozenset[int] = frozenset({1})) -> LoadableVersion:
        async with self.blends.hold(digest, 100, lambda: self.begin(digest, inputs), client) as version:
            return version

    def begin(self, digest: str, inputs: frozenset[int]) -> Build:
        self.begun += 1
        recipe = parse_expression("x@1 + y@1")
        plan = BlendPlan(digest=digest, recipe=recipe, inputs={}, max_rank=8, reserve_bytes=100)
        return Build(self.run, self.release, lambda: plan, inputs)

    async def run(self, place: LoadableVersion) -> int:
        pytest.fail(f"nothing is built here: {place}")

    async def release(self) -> None:
        self.released += 1


async def test_a_blend_is_counted_as_new_once_and_always_has_its_plan() -> None:
    front = Front()
    first, again = await front.ask(A), await front.ask(A, "two")
    assert (front.begun, front.released) == (1, 1)
    assert (first.engine_name, first.lora_id) == (again.engine_name, again.lora_id) == (blend_name(A), first.lora_id)
    assert first.plan is not None
    assert again.plan is not None
    assert (first.plan.client, again.plan.client) == ("one", "two"), "the memory is its last user's"
    assert (first.folder, first.digest) == (Path(), "")


async def test_two_blends_with_the_same_short_name_have_two_names() -> None:
    front = Front()
    first, second = await front.ask(A), await front.ask(LIKE_A)
    assert (first.engine_name, second.engine_name) == (blend_name(A), blend_name(LIKE_A, 64))
    assert front.blends.name_of(LIKE_A) == second.engine_name
    assert first.lora_id != second.lora_id


async def test_what_was_not_built_is_new_again() -> None:
    front = Front()
    with pytest.raises(BlendFailed):
        async with front.blends.hold(A, 100, lambda: front.begin(A, frozenset())):
            raise BlendFailed
    assert not front.blends.has(A)
    await front.ask(A)
    assert (front.begun, front.released) == (2, 2)


async def test_a_blend_of_what_was_deleted_is_forgotten() -> None:
    front = Front()
    await front.ask(A, inputs=frozenset({1, 2}))
    await front.ask(LIKE_A, inputs=frozenset({3}))
    front.blends.retire({2})
    assert (front.blends.has(A), front.blends.has(LIKE_A)) == (False, True)
