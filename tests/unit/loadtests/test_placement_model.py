"""The model of routing counts what it says it counts."""

import pytest

from loadtests.placement_model import (
    BUSY,
    PLACES,
    SAMPLED,
    Engine,
    Model,
    Size,
    at_random,
    by_affinity,
    homes_of,
    least_loaded,
    moved,
    run,
)

SMALL = Size(8, 2_000, 3_000)


def test_affinity_finds_adapters_in_memory_where_chance_does_not() -> None:
    figures = {way.__name__: run(SMALL, way, 1) for way in (by_affinity, at_random, least_loaded)}
    share = {name: found["requests at an engine that has the adapter, %"] for name, found in figures.items()}
    assert share["by_affinity"] > share["at_random"] + 15
    assert share["by_affinity"] > share["least_loaded"] + 15
    spread = {name: found["fullest engine, times the mean load"] for name, found in figures.items()}
    assert 1 <= spread["least_loaded"] < spread["at_random"]


def test_an_engine_keeps_what_it_was_asked_for_last() -> None:
    model = Model(SMALL, 1)
    model.forget()
    engine = model.engines[0]
    for number in range(PLACES + 1):
        model.send(engine, f"adapter-{number}")
    model.send(engine, "adapter-0")
    model.send(engine, "adapter-2")
    assert (model.loads, model.hits) == (PLACES + 2, 1)
    assert len(engine.resident) == PLACES
    assert engine.load == PLACES + 3
    assert model.to_busy == PLACES + 3 - BUSY


def test_requests_end() -> None:
    model = Model(SMALL, 1)
    for adapter in model.arrivals(2_000):
        model.send(model.engines[0], adapter)
    assert model.engines[0].load < 2_000
    assert sum(engine.load for engine in model.engines[1:]) == 0


@pytest.mark.parametrize("more", [1, -1, 4])
def test_as_few_move_as_have_to(more: int) -> None:
    least = 100 * abs(more) / max(16, 16 + more)
    # Three standard deviations of as many draws.
    assert moved(16, more) == pytest.approx(least, abs=300 * (least / 100 / SAMPLED) ** 0.5)


def test_a_home_is_the_same_whoever_asks() -> None:
    engines = [Engine(f"engine-{number}") for number in range(5)]
    assert homes_of(engines, ["a", "b"]) == homes_of(engines[::-1], ["a", "b"])
