"""How many may be in progress: bounds, who is refused with what, and when they are told to come back."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amalgam.errors.overload import KeyOverShare, ServerFull, TenantOverShare
from amalgam.services.admission import Admission, RequestBounds
from amalgam.services.drain_rate import LONGEST_S, DrainRate
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.server_state import ServerState
from tests.support.memory import objects_within


class Harness:
    def __init__(self, total: int, per_key: int, per_tenant: int | None = None) -> None:
        self.now_s = 0.0
        self.metrics = Metrics()
        bounds = RequestBounds(total, per_key, per_tenant or total)
        self.admission = Admission(bounds, clock=lambda: self.now_s, metrics=self.metrics)
        self.inside: list[ExitStack] = []

    def enter(self, client: str, tenant: str = "default") -> None:
        stack = ExitStack()
        stack.enter_context(self.admission.enter(client, tenant))
        self.inside.append(stack)

    def leave(self) -> None:
        self.inside.pop(0).close()

    def page(self) -> str:
        return self.metrics.scrape(ServerState()).text().decode()


def test_a_key_over_its_share_is_refused_and_the_others_are_not() -> None:
    harness = Harness(total=8, per_key=4)
    for _ in range(4):
        harness.enter("heavy")
    with pytest.raises(KeyOverShare, match="4 requests") as refused:
        harness.enter("heavy")
    assert refused.value.status == 429
    harness.enter("light")
    harness.leave()
    harness.enter("heavy")
    assert 'amalgam_requests_refused_total{reason="key_share"} 1.0' in harness.page()
    assert "amalgam_requests_admitted 5" in harness.page()


def test_a_full_server_refuses_everybody_with_another_word() -> None:
    harness = Harness(total=4, per_key=2)
    for client in "aabb":
        harness.enter(client)
    with pytest.raises(ServerFull) as refused:
        harness.enter("c")
    assert refused.value.status == 503
    # The key's own share is what it can do something about, so it is said first.
    with pytest.raises(KeyOverShare):
        harness.enter("a")
    assert 'amalgam_requests_refused_total{reason="server_full"} 1.0' in harness.page()


def test_one_key_that_may_have_all_is_never_told_of_a_share() -> None:
    harness = Harness(total=2, per_key=2)
    harness.enter("")
    harness.enter("")
    with pytest.raises(ServerFull):
        harness.enter("")


def test_counts_return_to_zero_whatever_happens_inside() -> None:
    harness = Harness(total=2, per_key=2)
    with pytest.raises(RuntimeError), harness.admission.enter("a"):
        raise RuntimeError
    assert harness.admission.count == 0
    assert "amalgam_requests_admitted 0" in harness.page()


def test_nothing_is_kept_of_keys_and_tenants_that_left() -> None:
    harness = Harness(total=2, per_key=2)
    for _ in range(100):
        # As many ends as are remembered of the rate.
        harness.enter("first")
        harness.leave()
    before = objects_within(harness.admission)
    for number in range(200):
        harness.enter(f"key-{number}", f"tenant-{number}")
        harness.leave()
    # A key and its tenant are a handful of objects each.
    assert objects_within(harness.admission) < before + 200


def test_retry_after_is_the_measured_rate_and_the_refused_do_not_all_come_back_at_once() -> None:
    harness = Harness(total=4, per_key=4)
    for _ in range(4):
        harness.enter("a")
    for _ in range(10):
        harness.now_s += 3.0
        harness.leave()
        harness.enter("a")
    told: list[float] = []
    for _ in range(5):
        with pytest.raises(ServerFull) as refused:
            harness.enter("a")
        told.append(refused.value.retry_after_s or 0.0)
    assert told == pytest.approx([3.0, 6.0, 9.0, 12.0, 15.0])
    # Who is told to come back in a while has been forgotten by then.
    harness.now_s += 15.0
    with pytest.raises(ServerFull) as refused:
        harness.enter("a")
    assert (refused.value.retry_after_s or 0) < 6.0


def test_the_rate_of_an_idle_server_says_nothing_about_a_busy_one() -> None:
    harness = Harness(total=4, per_key=4)
    for _ in range(5):
        harness.enter("a")
        harness.leave()
        harness.now_s += 100.0
    for _ in range(4):
        harness.enter("a")
    with pytest.raises(ServerFull) as refused:
        harness.enter("a")
    assert refused.value.retry_after_s == 1.0


def test_a_stall_shows_and_the_advice_has_a_limit() -> None:
    now_s = 0.0
    drain = DrainRate(lambda: now_s)
    now_s = 20.0
    assert drain.seconds_each() == 20.0
    drain.ended()
    assert drain.seconds_each() == 20.0
    now_s = 1e6
    assert drain.appointment_s() == LONGEST_S


def test_of_many_ends_the_last_ones_count() -> None:
    now_s = 0.0
    drain = DrainRate(lambda: now_s)
    for step in range(300):
        now_s += 10.0 if step < 200 else 0.5
        drain.ended()
    assert drain.seconds_each() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("given", "keys", "tenants", "expected"),
    [
        ((None, None, None), 0, 0, (256, 256, 256)),
        ((None, None, None), 1, 1, (256, 256, 256)),
        ((None, None, None), 2, 1, (256, 128, 256)),
        ((None, None, None), 4, 2, (256, 128, 192)),
        ((10, None, None), 3, 3, (10, 5, 7)),
        ((1, None, None), 3, 2, (1, 1, 1)),
        ((10, 7, None), 1, 1, (10, 7, 10)),
        ((10, 9, None), 2, 2, (10, 9, 9)),
        ((10, 70, None), 2, 2, (10, 10, 10)),
        ((10, None, 3), 2, 2, (10, 3, 3)),
        ((10, None, 30), 2, 2, (10, 5, 10)),
    ],
)
def test_bounds_come_from_the_batch_unless_they_are_set(
    given: tuple[int | None, int | None, int | None], keys: int, tenants: int, expected: tuple[int, int, int]
) -> None:
    assert RequestBounds.of(64, *given, keys=keys, tenants=tenants) == RequestBounds(*expected)


def test_a_tenant_has_its_share_however_many_keys_it_has() -> None:
    harness = Harness(total=12, per_key=4, per_tenant=6)
    for client in "aaabbb":
        harness.enter(client, "many")
    with pytest.raises(TenantOverShare, match="6 requests") as refused:
        harness.enter("c", "many")
    assert (refused.value.status, refused.value.code) == (429, "too_many_requests")
    for _ in range(4):
        harness.enter("d", "one")
    harness.leave()
    harness.enter("c", "many")
    assert 'amalgam_requests_refused_total{reason="tenant_share"} 1.0' in harness.page()


TENANTS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "c1": "c"}


@given(
    bounds=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8)),
    steps=st.lists(st.one_of(st.sampled_from(sorted(TENANTS)), st.integers(0, 30)), max_size=80),
)
def test_whoever_comes_and_goes_is_let_in_exactly_where_every_bound_allows_it(
    bounds: tuple[int, int, int], steps: list[str | int]
) -> None:
    """A key's name: one more request of it; a number: that one of those in progress ends."""
    total, per_key, per_tenant = bounds
    harness, inside = Harness(*bounds), list[str]()
    for step in steps:
        if isinstance(step, int):
            if inside:
                place = step % len(inside)
                inside.pop(place)
                harness.inside.pop(place).close()
            continue
        of_tenant = sum(TENANTS[one] == TENANTS[step] for one in inside)
        # A share that is as large as the whole is the whole's.
        expected: type[Exception] | None = None
        if inside.count(step) >= per_key < total:
            expected = KeyOverShare
        elif of_tenant >= per_tenant < total:
            expected = TenantOverShare
        elif len(inside) >= total:
            expected = ServerFull
        if expected is None:
            harness.enter(step, TENANTS[step])
            inside.append(step)
        else:
            with pytest.raises(expected):
                harness.enter(step, TENANTS[step])
        assert harness.admission.count == len(inside)
    for stack in harness.inside:
        stack.close()
    assert harness.admission.count == 0
