"""Merges that are measured before they are published: recorded, warned of, refused; and never in the way of others."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.job import Job, JobRequest
from amalgam.domain.skill_probe import SkillProbe
from amalgam.domain.version import VersionDraft
from amalgam.errors.adapters import NameTaken
from amalgam.errors.engine import EngineNotReady, EngineRefused
from amalgam.services.new_versions import NewVersion, UploadedFile
from tests.support.reading_engine import ReadingEngine
from tests.support.running_app import RunningApp
from tests.unit.services.conftest import Publishing

PROMPTS = {"sql@1": (EvaluationItem(prompt="one"), EvaluationItem(prompt="two"))}


async def upload(app: RunningApp, folder: Path) -> AdapterVersion:
    files = [UploadedFile(path.name, iter([path.read_bytes()])) for path in folder.iterdir()]
    return (await app.services.adapters.upload(NewVersion("sql"), files))[0]


def request(version: AdapterVersion, required: float | None = None, **changes: Any) -> JobRequest:
    probe = SkillProbe(prompts=PROMPTS, max_tokens=8, required=required)
    wanted = JobRequest("merge", "mix", {}, "digest", True, (version.digest,), probe)
    return replace(wanted, **changes)


async def built(publishing: Publishing, version: AdapterVersion, wanted: JobRequest) -> Job:
    queued = (await publishing.stored.jobs.submit(wanted)).job
    assert queued is not None
    claimed = await publishing.stored.jobs.claim("worker", lease_s=30, max_attempts=1)
    assert claimed is not None
    draft = VersionDraft(
        name="mix", digest=version.digest, rank=2, size_bytes=1, module_count=1, base_fingerprint="", source="merge",
        recipe_digest="digest", lineage={"recipe": {}}, warnings=("a cut",),
    )  # fmt: skip
    await publishing.stored.jobs.finish_built(claimed.id, claimed.fencing_token, draft, {"merge": 1.0})
    return await publishing.stored.jobs.get(claimed.id)


def agreeing(app: RunningApp, agreed: int, failure: Exception | None = None) -> list[Any]:
    """An engine whose inputs answer with four tokens, of which a merge would write ``agreed`` itself.

    Returns: the endpoints that it is asked at from now on.
    """
    reading, asked = ReadingEngine(agreed=agreed), list[Any]()

    async def call(endpoint: Any, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        asked.append(endpoint)
        if failure is not None and endpoint != "tokenize":
            raise failure
        return await reading.call(endpoint, body, raw_request, profile)

    app.engine.call = call  # type: ignore[method-assign]
    return asked


async def published(publishing: Publishing, job: Job) -> Job:
    """As the publishing loop does, until the job is final."""
    async with asyncio.timeout(20):
        while True:
            await publishing.publisher.publish_built()
            found = await publishing.stored.jobs.get(job.id)
            if not found.is_live:
                await publishing.app.services.catalog.refresh()
                return found
            await asyncio.sleep(0.01)


async def test_what_is_kept_goes_into_the_lineage_and_a_lost_skill_is_warned_of(
    publishing: Publishing, folder: Path
) -> None:
    version = await upload(publishing.app, folder)
    agreeing(publishing.app, 3)
    done = await published(publishing, await built(publishing, version, request(version)))
    assert done.state == "published"
    assert done.timings.keys() == {"queue", "merge", "register", "probe", "kept"}
    made = publishing.app.services.catalog.snapshot.versions["mix@1"]
    assert made.lineage is not None
    kept = made.lineage["kept"]
    assert made.lineage["recipe"] == {}
    assert kept["inputs"]["sql@1"]["agreement"] == 0.75
    assert (kept["inputs"]["sql@1"]["answers"], kept["inputs"]["sql@1"]["prompts"]) == (0, 2)
    assert kept["probe_digest"] == request(version).probe.digest()  # type: ignore[union-attr]
    assert made.warnings[0] == "a cut"
    assert made.warnings[1].startswith("skill_lost: the merge gives 0 of 2 answers of sql@1 ")


async def test_a_merge_that_keeps_all_is_published_without_a_warning(publishing: Publishing, folder: Path) -> None:
    version = await upload(publishing.app, folder)
    agreeing(publishing.app, 4)
    done = await published(publishing, await built(publishing, version, request(version, 1.0)))
    assert done.state == "published"
    assert publishing.app.services.catalog.snapshot.versions["mix@1"].warnings == ("a cut",)


async def test_a_merge_that_keeps_less_than_is_required_is_not_published(publishing: Publishing, folder: Path) -> None:
    version = await upload(publishing.app, folder)
    agreeing(publishing.app, 1)
    done = await published(publishing, await built(publishing, version, request(version, 0.9)))
    assert (done.state, done.error and done.error.code) == ("failed", "kept_too_low")
    assert done.error is not None
    assert "sql@1" in done.error.message
    assert "mix@1" not in [resident.engine_name for resident in publishing.app.engine.residency.residents()]
    assert "mix@1" not in publishing.app.services.catalog.snapshot.versions


@pytest.mark.parametrize("required", [None, 0.5])
async def test_what_cannot_be_measured_is_said_and_refused_only_where_it_is_required(
    publishing: Publishing, folder: Path, required: float | None
) -> None:
    version = await upload(publishing.app, folder)
    agreeing(publishing.app, 4, EngineRefused(400, "prompt: it is too long.", "prompt"))
    done = await published(publishing, await built(publishing, version, request(version, required)))
    if required is not None:
        assert (done.state, done.error and done.error.code) == ("failed", "kept_unknown")
        return
    made = publishing.app.services.catalog.snapshot.versions["mix@1"]
    assert made.lineage is not None
    assert made.lineage["kept"]["failure"] == "prompt: it is too long."
    assert made.warnings[1].startswith("kept_unknown: ")


async def test_an_engine_that_restarts_is_waited_for(publishing: Publishing, folder: Path) -> None:
    version = await upload(publishing.app, folder)
    asked = agreeing(publishing.app, 4, EngineNotReady("restarting"))
    job = await built(publishing, version, request(version))
    await publishing.publisher.publish_built()
    async with asyncio.timeout(20):
        while not asked or (await publishing.stored.jobs.get(job.id)).state != "built":
            await asyncio.sleep(0.01)
    agreeing(publishing.app, 4)
    assert (await published(publishing, job)).state == "published"


async def test_other_merges_are_published_while_one_is_measured(publishing: Publishing, folder: Path) -> None:
    version = await upload(publishing.app, folder)
    agreeing(publishing.app, 4)
    gate, call = asyncio.Event(), publishing.app.engine.call

    async def waiting(*arguments: Any) -> Any:
        await gate.wait()
        return await call(*arguments)

    publishing.app.engine.call = waiting  # type: ignore[assignment]
    slow = await built(publishing, version, request(version))
    await publishing.publisher.publish_built()
    plain = JobRequest("merge", "mix", {}, "other", True, (version.digest,))
    await publishing.publisher.publish_built()
    quick = await built(publishing, version, plain)
    await publishing.publisher.publish_built()
    assert (await publishing.stored.jobs.get(quick.id)).state == "published"
    assert (await publishing.stored.jobs.get(slow.id)).state == "publishing"
    gate.set()
    assert (await published(publishing, slow)).state == "published"


async def test_a_server_that_stops_leaves_the_merge_built(publishing: Publishing, folder: Path) -> None:
    version = await upload(publishing.app, folder)
    never = asyncio.Event()

    async def waiting(*arguments: Any) -> Any:
        await never.wait()

    publishing.app.engine.call = waiting  # type: ignore[assignment]
    job = await built(publishing, version, request(version))
    await publishing.publisher.publish_built()
    await publishing.publisher.close()
    assert (await publishing.stored.jobs.get(job.id)).state == "built"
    agreeing(publishing.app, 4)
    assert (await published(publishing, job)).state == "published"


async def test_a_merge_is_built_once_a_probe(publishing: Publishing, folder: Path) -> None:
    """A version that was asked the very same is there; one that was asked something else, or nothing, is not enough."""
    version = await upload(publishing.app, folder)
    agreeing(publishing.app, 4)
    wanted = request(version)
    first = await built(publishing, version, wanted)
    joined = await publishing.stored.jobs.submit(wanted)
    assert (joined.job and joined.job.id, joined.created) == (first.id, False)
    with pytest.raises(NameTaken):
        await publishing.stored.jobs.submit(request(version, 0.5))
    await published(publishing, first)
    again = await publishing.stored.jobs.submit(wanted)
    assert again.version is not None
    assert (await publishing.stored.jobs.submit(request(version, probe=None))).version == again.version
    stricter = await publishing.stored.jobs.submit(request(version, 0.5))
    assert stricter.created
    assert stricter.version is None
