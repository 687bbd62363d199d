"""An upload whose client leaves: in the end its version is in service, or there is none; never one that did not answer.

The upload is cancelled right before and right after every step of its second half, in which its row is there.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest

from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry.adapters import AdapterRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.new_versions import NewVersion, UploadedFile
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import RunningApp, start_app, write_adapter

STEPS: list[tuple[type, str]] = [
    (AdapterRegistry, "create_version"),
    (FakeEngine, "load"),
    (FakeEngine, "probe"),
    (AdapterRegistry, "enter_service"),
    (Catalog, "refresh"),
    (AdapterRegistry, "set_description"),
    (AdapterRegistry, "withdraw_version"),
    (FakeEngine, "unload"),
]

IS_TRIED: ContextVar[bool] = ContextVar("IS_TRIED", default=False)
"""Set in the call that is cancelled and in the tasks that it makes: the application's own loops take the same steps."""


@pytest.fixture
async def running_app(tmp_path: Path) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path) as opened:
        yield opened


async def upload(running_app: RunningApp, tmp_path: Path) -> Any:
    folder = await asyncio.to_thread(write_adapter, tmp_path / "adapter", seed=1)
    files = [UploadedFile(path.name, iter([path.read_bytes()])) for path in sorted(folder.iterdir())]
    return await running_app.services.adapters.upload(NewVersion("sql", description="of queries"), files)


def tried(call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    context = copy_context()
    context.run(IS_TRIED.set, True)
    return asyncio.create_task(call, context=context)


async def assert_whole(running_app: RunningApp) -> bool:
    """Whether the version is there; then it has answered, and everything else says the same."""
    adapters = running_app.services.adapters
    async with asyncio.timeout(20):
        while adapters.under_way or running_app.services.loops.unfinished:
            await asyncio.sleep(0.01)
    await running_app.services.catalog.refresh()
    rows = await (await running_app.stored()).versions.load_catalog()
    live = [str(version.ref) for version in rows.versions]
    residents = {resident.engine_name for resident in running_app.engine.info().residents}
    assert set(live) == set(running_app.services.catalog.snapshot.versions)
    assert residents <= set(live), "what is gone is not kept in memory"
    assert running_app.staged() == []
    if not live:
        return False
    assert live == ["sql@1"]
    assert "sql@1" in running_app.engine.probed
    [adapter] = rows.adapters
    assert (adapter.default_version, adapter.description) == (1, "of queries")
    return True


@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused by its probe"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), STEPS)
async def test_an_upload_that_is_cancelled_is_finished_or_withdrawn(
    owner: type,
    name: str,
    after: bool,
    refused: bool,
    running_app: RunningApp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = getattr(owner, name)
    cancelled: list[bool] = []
    task: asyncio.Task[Any]

    async def step(*args: Any, **kwargs: Any) -> Any:
        if IS_TRIED.get() and not after and not cancelled:
            cancelled.append(task.cancel())
            await asyncio.sleep(0)
        outcome = await original(*args, **kwargs)
        if IS_TRIED.get() and after and not cancelled:
            cancelled.append(task.cancel())
            await asyncio.sleep(0)
        return outcome

    if refused:
        running_app.engine.refuse_probe.add("sql@1")
    monkeypatch.setattr(owner, name, step)
    task = tried(upload(running_app, tmp_path))
    outcome: object
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    monkeypatch.undo()
    is_there = await assert_whole(running_app)
    assert is_there == (not refused)
    if cancelled and cancelled[0]:
        assert isinstance(outcome, asyncio.CancelledError)


async def test_a_version_that_does_not_answer_while_the_registry_is_away_is_withdrawn_later(
    running_app: RunningApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, away = AdapterRegistry.withdraw_version, [True] * 4

    async def withdraw(*args: Any) -> None:
        if away:
            away.pop()
            raise RegistryUnavailable("it does not answer")
        await original(*args)

    monkeypatch.setattr(AdapterRegistry, "withdraw_version", withdraw)
    running_app.engine.refuse_probe.add("sql@1")
    with pytest.raises(Exception, match=r"could not load|cannot be used"):
        await upload(running_app, tmp_path)
    assert not await assert_whole(running_app)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), [(AdapterRegistry, "delete_adapter"), (Catalog, "refresh")])
async def test_a_deletion_that_is_cancelled_frees_the_engine(
    owner: type, name: str, after: bool, running_app: RunningApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upload(running_app, tmp_path)
    assert running_app.engine.info().residents
    original = getattr(owner, name)
    cancelled: list[bool] = []
    task: asyncio.Task[Any]

    async def step(*args: Any, **kwargs: Any) -> Any:
        outcome = await original(*args, **kwargs) if after else None
        if IS_TRIED.get() and not cancelled:
            cancelled.append(task.cancel())
            await asyncio.sleep(0)
        return outcome if after else await original(*args, **kwargs)

    monkeypatch.setattr(owner, name, step)
    task = tried(running_app.services.adapters.delete("sql"))
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(20):
        while running_app.engine.info().residents:
            await asyncio.sleep(0.01)
    assert (await (await running_app.stored()).versions.load_catalog()).versions == ()
    assert running_app.services.catalog.snapshot.versions == {}
