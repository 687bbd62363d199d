"""Tenants and keys in the database, on SQLite and PostgreSQL."""

from datetime import timedelta

import pytest

from amalgam.domain.scopes import Scopes
from amalgam.domain.tenant import BUILT_IN_TENANT, Key, Limits, ModelLimits, Role, Tenant, TenantChange, secret_digest
from amalgam.errors.tenants import KeyNotFound, KeyNotLive, TenantExists, TenantKept, TenantNotFound
from amalgam.registry.database import Database
from amalgam.registry.keys import KeyRegistry
from amalgam.registry.tenants import TenantRegistry
from tests.registry_fixtures import FakeClock


@pytest.fixture
def tenants(database: Database, clock: FakeClock) -> TenantRegistry:
    return TenantRegistry(database, clock)


@pytest.fixture
def keys(database: Database, clock: FakeClock) -> KeyRegistry:
    return KeyRegistry(database, clock)


def tenant(clock: FakeClock, name: str = "acme", **fields: object) -> Tenant:
    return Tenant.model_validate(
        {"id": name, "name": name.title(), "created_at": clock(), "updated_at": clock()} | fields
    )


def key(clock: FakeClock, number: int = 1, **fields: object) -> Key:
    given = {"id": f"{number:016x}", "tenant": "acme", "role": "client", "created_at": clock()}
    return Key.model_validate(given | {"secret_digest": secret_digest(f"secret {number}").hex()} | fields)


async def test_the_built_in_tenant_is_there_and_stays(tenants: TenantRegistry) -> None:
    assert (await tenants.get(BUILT_IN_TENANT)).state == "active"
    for change in (tenants.delete(BUILT_IN_TENANT), tenants.update(BUILT_IN_TENANT, TenantChange(state="suspended"))):
        with pytest.raises(TenantKept):
            await change
    limited = await tenants.update(BUILT_IN_TENANT, TenantChange(limits=Limits(requests_per_minute=5)))
    assert limited.limits.requests_per_minute == 5


async def test_a_tenant_is_written_changed_and_read_as_it_was(tenants: TenantRegistry, clock: FakeClock) -> None:
    limits = Limits(tokens_per_minute=100)
    draft = tenant(clock, limits=limits, model_limits=(ModelLimits(pattern="acme.*", limits=limits),), weight=2.5)
    assert await tenants.create(draft) == draft
    assert await tenants.get("acme") == draft
    clock.advance(5)
    changed = await tenants.update("acme", TenantChange(cache_group="shared"))
    assert changed == draft.model_copy(update={"cache_group": "shared", "updated_at": clock()})
    assert (await tenants.update("acme", TenantChange(cache_group=None))).cache_group is None
    assert (await tenants.update("acme", TenantChange(name="A"))).model_limits == draft.model_limits


async def test_an_id_is_never_given_again(tenants: TenantRegistry, clock: FakeClock) -> None:
    await tenants.create(tenant(clock))
    with pytest.raises(TenantExists, match="is taken"):
        await tenants.create(tenant(clock))
    await tenants.delete("acme")
    for gone in (tenants.get("acme"), tenants.delete("acme"), tenants.update("acme", TenantChange(name="x"))):
        with pytest.raises(TenantNotFound):
            await gone
    with pytest.raises(TenantExists, match="was deleted"):
        await tenants.create(tenant(clock))


async def test_keys_go_with_their_tenant(tenants: TenantRegistry, keys: KeyRegistry, clock: FakeClock) -> None:
    with pytest.raises(TenantNotFound):
        await keys.create(key(clock))
    await tenants.create(tenant(clock))
    made = await keys.create(key(clock, scopes={"models": ["acme.*"], "blends": "own"}, role="publisher"))
    assert (made.role, made.scopes) == (Role.PUBLISHER, Scopes(models=("acme.*",), blends="own"))
    assert await keys.get(made.id) == made
    assert [one.id for one in (await tenants.load()).keys] == [made.id]
    await tenants.delete("acme")
    assert (await keys.get(made.id)).state == "revoked"
    assert (await tenants.load()).keys == ()
    assert [one.id for one in (await tenants.load()).tenants] == [BUILT_IN_TENANT]


async def test_rotation_leaves_both_for_a_while(tenants: TenantRegistry, keys: KeyRegistry, clock: FakeClock) -> None:
    await tenants.create(tenant(clock))
    first = await keys.create(key(clock, 1, name="n", limits={"tokens_per_day": 7}), lifetime_s=1000)
    clock.advance(100)
    old, new = await keys.rotate(first.id, key(clock, 2), overlap_s=60, lifetime_s=None)
    assert old == first.model_copy(update={"successor": new.id, "expires_at": clock() + timedelta(seconds=60)})
    assert (new.name, new.limits, new.created_at) == ("n", first.limits, clock())
    assert new.expires_at == clock() + timedelta(seconds=1000), "as long as the first one had"
    assert new.secret_digest == secret_digest("secret 2").hex()
    with pytest.raises(KeyNotLive, match=new.id):
        await keys.rotate(first.id, key(clock, 3), overlap_s=60, lifetime_s=None)
    ending, _ = await keys.rotate(new.id, key(clock, 4), overlap_s=10_000, lifetime_s=None)
    assert ending.expires_at == new.expires_at, "rotating makes no key last longer"


async def test_what_has_ended_is_not_rotated(tenants: TenantRegistry, keys: KeyRegistry, clock: FakeClock) -> None:
    await tenants.create(tenant(clock))
    revoked, late = await keys.create(key(clock, 1)), await keys.create(key(clock, 2), lifetime_s=5)
    assert (await keys.revoke(revoked.id)).state == "revoked"
    assert (await keys.revoke(revoked.id)).state == "revoked"
    clock.advance(5)
    for one in (revoked, late):
        with pytest.raises(KeyNotLive):
            await keys.rotate(one.id, key(clock, 3), overlap_s=1, lifetime_s=None)
    for missing in (keys.get("none"), keys.revoke("none"), keys.rotate("none", late, overlap_s=1, lifetime_s=None)):
        with pytest.raises(KeyNotFound):
            await missing


async def test_pages_of_tenants_and_keys(tenants: TenantRegistry, keys: KeyRegistry, clock: FakeClock) -> None:
    for name in ("b", "a", "c"):
        await tenants.create(tenant(clock, name))
    for number in range(5):
        await keys.create(key(clock, number, tenant="ab"[number % 2]))
    page = await tenants.list(limit=2, cursor=None)
    assert ([one.id for one in page.items], page.next_cursor) == (["a", "b"], "b")
    rest = await tenants.list(limit=2, cursor="b")
    assert ([one.id for one in rest.items], rest.next_cursor) == (["c", BUILT_IN_TENANT], None)
    mine = await keys.list("a", limit=2, cursor=None)
    assert [one.id for one in mine.items] == [f"{number:016x}" for number in (0, 2)]
    last = await keys.list("a", limit=2, cursor=mine.next_cursor)
    assert ([one.id for one in last.items], last.next_cursor) == ([f"{4:016x}"], None)
    assert len((await keys.list(None, limit=10, cursor=None)).items) == 5


async def test_every_change_moves_the_revision_and_use_does_not(
    tenants: TenantRegistry, keys: KeyRegistry, clock: FakeClock
) -> None:
    seen = [await tenants.revision()]
    await tenants.create(tenant(clock))
    seen.append(await tenants.revision())
    await tenants.update("acme", TenantChange(weight=3.0))
    seen.append(await tenants.revision())
    made = await keys.create(key(clock))
    seen.append(await tenants.revision())
    await keys.note_used({made.id: clock(), "nobody's": clock()})
    assert (await keys.get(made.id)).last_used_at == clock()
    await keys.note_used({made.id: clock() - timedelta(seconds=9)})
    assert (await keys.get(made.id)).last_used_at == clock(), "no moment goes back"
    assert await tenants.revision() == seen[-1]
    await keys.revoke(made.id)
    seen.append(await tenants.revision())
    assert seen == sorted(set(seen))
    assert (await tenants.load()).revision == seen[-1]
