"""Where requests are sent, without Ray."""

from collections import Counter
from dataclasses import dataclass

from amalgam.engine.remote.affinity import WINDOW_S, Shares, ranked, read_key, routing_key

ADAPTERS = [f"a{number}@1" for number in range(400)]


@dataclass
class Replica:
    name: str
    load: int = 0
    is_resident: bool = False
    is_ready: bool = True


def replicas(count: int) -> list[Replica]:
    return [Replica(f"r{number}") for number in range(count)]


def home(key: str, seen: list[Replica], homes: int = 1) -> str:
    return seen[ranked(key, seen, homes, 8, 0)[0]].name


def test_a_key_carries_adapter_and_attempt() -> None:
    assert read_key(routing_key("a|b@1", 3)) == (3, "a|b@1")
    assert read_key(routing_key(None, 0)) == (0, "")
    assert read_key("a@1") == (0, "a@1"), "of a caller that is no front"


def test_adapters_are_spread_and_every_front_agrees_whatever_order_it_sees() -> None:
    seen = replicas(4)
    homes = {key: home(key, seen) for key in ADAPTERS}
    assert homes == {key: home(key, seen[::-1]) for key in ADAPTERS}
    assert all(60 <= count <= 140 for count in Counter(homes.values()).values())


def test_only_the_adapters_of_a_replica_that_comes_or_goes_move() -> None:
    three, four = replicas(3), replicas(4)
    moved = [key for key in ADAPTERS if home(key, three) != home(key, four)]
    assert {home(key, four) for key in moved} == {"r3"}
    assert 60 <= len(moved) <= 140


def test_a_busy_home_is_passed_over_for_who_has_the_adapter_then_for_who_has_least() -> None:
    seen = replicas(3)
    first, second, third = ranked("a@1", seen, 1, 8, 0)
    seen[first].load = 8
    seen[second].load, seen[third].load = 1, 2
    assert ranked("a@1", seen, 1, 8, 0) == [second, third, first]
    seen[third].is_resident = True
    assert ranked("a@1", seen, 1, 8, 0) == [third, second, first]
    seen[second].load = seen[third].load = 9
    assert ranked("a@1", seen, 1, 8, 0)[0] == first, "where all are busy, home is best"


def test_the_second_home_has_requests_only_while_the_first_is_busy() -> None:
    seen = replicas(3)
    first, second, _ = ranked("a@1", seen, 2, 8, 0)
    assert ranked("a@1", seen, 2, 8, 0)[:2] == [first, second]
    seen[first].load = 8
    assert ranked("a@1", seen, 2, 8, 0)[0] == second


def test_the_base_model_goes_where_least_is_to_do() -> None:
    seen = [Replica("r0", load=3), Replica("r1", load=1), Replica("r2", load=2)]
    assert ranked("", seen, 1, 8, 0) == [1, 2, 0]


def test_a_request_that_was_lost_goes_elsewhere_and_an_engine_that_is_not_ready_is_last() -> None:
    seen = replicas(3)
    order = ranked("a@1", seen, 1, 8, 0)
    assert [ranked("a@1", seen, 1, 8, attempt)[0] for attempt in range(4)] == [*order, order[0]]
    seen[order[0]].is_ready = False
    assert ranked("a@1", seen, 1, 8, 0)[-1] == order[0]


def test_no_replicas_are_no_ranks() -> None:
    assert ranked("a@1", [], 1, 8, 2) == []


def test_homes_grow_with_the_share_of_arrivals_and_fade_with_it() -> None:
    now = 0.0
    shares = Shares(lambda: now)
    shares.arrived("hot@1")
    assert shares.homes("hot@1", 4) == 1, "of few arrivals a share says nothing"
    for number in range(100):
        shares.arrived("hot@1")
        shares.arrived(f"a{number % 10}@1")
    assert shares.homes("hot@1", 4) == 3
    assert shares.homes("a1@1", 4) == 1
    assert shares.homes("never@1", 4) == 1
    now = 10 * WINDOW_S
    for number in range(100):
        shares.arrived(f"a{number % 10}@1")
    assert shares.homes("hot@1", 4) == 1
