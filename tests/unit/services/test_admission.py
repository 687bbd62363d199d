"""How many may be in progress: bounds, who is refused with what, and when they are told to come back."""

from contextlib import ExitStack

import pytest

from amalgam.errors.overload import KeyOverShare, ServerFull
from amalgam.services.admission import Admission, RequestBounds
from amalgam.services.drain_rate import LONGEST_S, DrainRate
from amalgam.telemetry.metrics import Metrics, ServerState


class Harness:
    def __init__(self, total: int, per_key: int) -> None:
        self.now_s = 0.0
        self.metrics = Metrics()
        self.admission = Admission(RequestBounds(total, per_key), clock=lambda: self.now_s, metrics=self.metrics)
        self.inside: list[ExitStack] = []

    def enter(self, client: str) -> None:
        stack = ExitStack()
        stack.enter_context(self.admission.enter(client))
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
    assert not harness.admission._keys
    assert "amalgam_requests_admitted 0" in harness.page()


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
    ("total", "per_key", "keys", "expected"),
    [
        (None, None, 0, (256, 256)),
        (None, None, 1, (256, 256)),
        (None, None, 2, (256, 128)),
        (10, None, 3, (10, 5)),
        (1, None, 3, (1, 1)),
        (10, 7, 1, (10, 7)),
        (10, 70, 2, (10, 10)),
    ],
)
def test_bounds_come_from_the_batch_unless_they_are_set(
    total: int | None, per_key: int | None, keys: int, expected: tuple[int, int]
) -> None:
    assert RequestBounds.of(64, total, per_key, keys=keys) == RequestBounds(*expected)
