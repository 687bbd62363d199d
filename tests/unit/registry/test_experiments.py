"""The registry of experiments and feedback: one truth for all front ends, and what ages."""

import asyncio
import itertools
from datetime import timedelta

import pytest

from amalgam.domain.alias import Alias, AliasTarget
from amalgam.domain.experiment import Ending, Experiment, ExperimentSpec, TargetCounts
from amalgam.domain.feedback import Answer
from amalgam.errors.aliases import AliasNotFound, StaleRevision
from amalgam.errors.learning import ExperimentNotFound, ExperimentRunning, FeedbackDiffers
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.database import Database
from amalgam.registry.experiments import ExperimentRegistry
from amalgam.registry.feedback import FeedbackRegistry
from tests.registry_fixtures import FakeClock, draft

SPEC = ExperimentSpec(control="sql@1", metric="thumb", promote=True)
WON = Ending(verdict="better", winner="sql@2", changes_alias=True)


@pytest.fixture
def experiments(database: Database, clock: FakeClock) -> ExperimentRegistry:
    ids = itertools.count(1)
    return ExperimentRegistry(database, clock, "base", lambda: f"exp-{next(ids)}")


@pytest.fixture
def feedback(database: Database, clock: FakeClock) -> FeedbackRegistry:
    return FeedbackRegistry(database, clock)


@pytest.fixture
async def begun(registry: AdapterRegistry, aliases: AliasRegistry, experiments: ExperimentRegistry) -> Experiment:
    for number in (1, 2):
        await registry.create_version(draft(number=number))
    await aliases.put("chat", (AliasTarget(model="sql@1", weight=9), AliasTarget(model="sql@2", weight=1)))
    return await experiments.start("chat", candidates, SPEC)


def candidates(alias: Alias) -> tuple[str, ...]:
    return tuple(target.model for target in alias.targets if target.model != "sql@1")


def answer(number: int, target: str = "sql@2", **changes: str | None) -> Answer:
    fields: dict[str, str | None] = {
        "id": f"req-{number}",
        "completion_id": None,
        "tenant": "default",
        "key_id": "k",
        "alias": "chat",
        "target": target,
        "version": target,
        "experiment": "exp-1",
        "unit": None,
    }
    return Answer(**(fields | changes))  # type: ignore[arg-type]


async def test_an_alias_carries_one_at_a_time(
    begun: Experiment, aliases: AliasRegistry, experiments: ExperimentRegistry
) -> None:
    carried = (await aliases.get("chat")).experiment
    assert carried is not None
    assert carried.id == begun.id
    with pytest.raises(ExperimentRunning):
        await experiments.start("chat", candidates, SPEC)
    with pytest.raises(AliasNotFound):
        await experiments.start("none", candidates, SPEC)
    with pytest.raises(ExperimentNotFound):
        await experiments.newest("none")
    await experiments.end(begun.id, lambda _: Ending(verdict="stopped"))
    with pytest.raises(StaleRevision):
        await experiments.start("chat", candidates, SPEC, expected=9)


async def test_counts_of_all_front_ends_are_added_up_and_a_write_may_be_repeated(
    begun: Experiment, experiments: ExperimentRegistry
) -> None:
    for _ in range(2):
        await experiments.put_counts("front-a", {(begun.id, "sql@1"): (10, 1, 2), (begun.id, "sql@2"): (3, 3, 0)})
        await experiments.put_counts("front-b", {(begun.id, "sql@1"): (5, 0, 0)})
    found = await experiments.newest("chat")
    assert found.of("sql@1") == TargetCounts(requests=15, errors=1, slow=2)
    assert found.of("sql@2") == TargetCounts(requests=3, errors=3, slow=0)
    assert [one.id for one in await experiments.running()] == [begun.id]


async def test_of_two_front_ends_one_ends_it(
    begun: Experiment, aliases: AliasRegistry, experiments: ExperimentRegistry
) -> None:
    revision = (await aliases.get("chat")).revision
    ended = await asyncio.gather(*(experiments.end(begun.id, lambda _: WON) for _ in range(4)))
    assert sum(one is not None for one in ended) == 1
    alias = await aliases.get("chat")
    assert alias.targets == (AliasTarget(model="sql@2", weight=1),)
    assert (alias.revision, alias.experiment) == (revision + 1, None)
    [change, *_] = (await aliases.history("chat")).items
    assert change.action == "experiment"
    assert await experiments.running() == []


async def test_what_was_seen_stays_after_the_end(
    begun: Experiment, experiments: ExperimentRegistry, feedback: FeedbackRegistry
) -> None:
    await feedback.add(answer(1), "thumb", 1.0)
    await experiments.put_counts("front-a", {(begun.id, "sql@2"): (4, 1, 0)})
    await experiments.end(begun.id, lambda _: WON)
    kept = TargetCounts(outcomes=1, total=1.0, requests=4, errors=1)
    assert (await experiments.newest("chat")).of("sql@2") == kept
    # A front end that has not heard of the end yet.
    await experiments.put_counts("front-a", {(begun.id, "sql@2"): (9, 9, 9)})
    await feedback.add(answer(2), "thumb", 1.0)
    assert (await experiments.newest("chat")).of("sql@2") == kept


async def test_an_end_is_decided_by_the_counts_of_its_moment(
    begun: Experiment, experiments: ExperimentRegistry, feedback: FeedbackRegistry
) -> None:
    await feedback.add(answer(1), "thumb", 1.0)
    asked: list[Experiment] = []

    def goes_on(found: Experiment) -> Ending | None:
        asked.append(found)
        return None

    assert await experiments.end(begun.id, goes_on) is None
    assert asked[0].of("sql@2").outcomes == 1
    assert (await experiments.newest("chat")).state == "running"


async def test_feedback_counts_once_under_the_metric_alone(
    begun: Experiment, experiments: ExperimentRegistry, feedback: FeedbackRegistry
) -> None:
    said, is_new = await feedback.add(answer(1), "thumb", 1.0)
    assert (said.answer, is_new) == ("req-1", True)
    assert (await feedback.add(answer(1), "thumb", 1.0))[1] is False
    with pytest.raises(FeedbackDiffers):
        await feedback.add(answer(1), "thumb", 0.0)
    await feedback.add(answer(1), "score", 0.5)
    await feedback.add(answer(2), "thumb", 0.5)
    await feedback.add(answer(3, experiment=None), "thumb", 0.0)
    assert (await experiments.newest("chat")).of("sql@2") == TargetCounts(outcomes=2, total=1.5)
    sums = [(one.name, one.count, one.total) for one in await feedback.sums("chat")]
    assert sums == [("score", 1, 0.5), ("thumb", 3, 1.5)]


async def test_of_a_unit_the_first_outcome_counts(
    begun: Experiment, experiments: ExperimentRegistry, feedback: FeedbackRegistry
) -> None:
    for number in range(3):
        await feedback.add(answer(number, unit="ann"), "thumb", 1.0)
    await feedback.add(answer(9, unit="bob"), "thumb", 0.0)
    assert (await experiments.newest("chat")).of("sql@2") == TargetCounts(outcomes=2, total=1.0)


async def test_answers_are_found_by_either_id_by_their_own_key(feedback: FeedbackRegistry, clock: FakeClock) -> None:
    one = answer(1, completion_id="chatcmpl-x")
    await feedback.put_answers([(one, clock()), (answer(1), clock()), (one, clock())])
    assert await feedback.find("default", "k", "req-1") == one
    assert await feedback.find("default", "k", "chatcmpl-x") == one
    assert await feedback.find("default", "other", "req-1") is None
    assert await feedback.find("acme", "k", "req-1") is None


async def test_a_changed_alias_ends_its_experiment(
    begun: Experiment, aliases: AliasRegistry, experiments: ExperimentRegistry
) -> None:
    await aliases.put("chat", (AliasTarget(model="sql@1", weight=1),))
    found = await experiments.newest("chat")
    assert (found.state, found.ending) == ("stopped", Ending(verdict="replaced"))
    assert (await aliases.get("chat")).experiment is None


async def test_what_is_old_is_forgotten_but_not_what_a_running_experiment_counts(
    begun: Experiment, experiments: ExperimentRegistry, feedback: FeedbackRegistry, clock: FakeClock
) -> None:
    await feedback.put_answers([(answer(1), clock())])
    await feedback.add(answer(1), "thumb", 1.0)
    await feedback.add(answer(2, experiment=None), "thumb", 1.0)
    clock.advance(3600)
    await feedback.put_answers([(answer(3), clock())])
    later = clock() - timedelta(seconds=1)
    assert await feedback.remove_before(later, later) == 2
    assert await feedback.find("default", "k", "req-1") is None
    assert await feedback.find("default", "k", "req-3") is not None
    assert [one.count for one in await feedback.sums("chat")] == [1]
    await experiments.end(begun.id, lambda _: WON)
    assert await feedback.remove_before(later, later) == 1
