from pathlib import Path
from typing import Any

import pytest

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.alias import AliasTarget
from amalgam.domain.job import Job, JobRequest
from amalgam.domain.version import VersionDraft
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import AdapterNotFound, VersionNotFound
from amalgam.errors.aliases import AliasTargetGone
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady
from amalgam.errors.requests import ModelNotFound
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.adapters import NewVersion, UploadedFile
from amalgam.services.publish import Publisher
from tests.api.house import House, write_adapter


def files(folder: Path) -> list[UploadedFile]:
    return [UploadedFile(path.name, iter([path.read_bytes()])) for path in folder.iterdir()]


async def upload(house: House, folder: Path, name: str = "sql", **more: Any) -> AdapterVersion:
    version, _ = await house.services.adapters.upload(NewVersion(name, **more), files(folder))
    return version


def registry(house: House) -> AdapterRegistry:
    return house.services.adapters._registry


def publisher(house: House) -> Publisher:
    return house.services.adapters._publisher


async def test_a_version_is_loaded_and_probed_before_its_name_means_it(house: House, folder: Path) -> None:
    version = await upload(house, folder)
    assert (house.engine.loaded, house.engine.probed) == (["sql@1"], ["sql@1"])
    assert house.services.catalog.resolve("sql").version == version


@pytest.mark.parametrize("failure", ["load", "probe", "unexpected"])
async def test_a_version_that_does_not_answer_moves_no_pointer_and_is_taken_back(
    house: House, folder: Path, tmp_path: Path, failure: str
) -> None:
    kept = await upload(house, folder)
    if failure == "unexpected":

        async def broken(version: Any) -> None:
            raise RuntimeError("core")

        house.engine.probe = broken  # type: ignore[method-assign]
    else:
        (house.engine.refuse_load if failure == "load" else house.engine.refuse_probe).add("sql@2")
    other = write_adapter(tmp_path / "other", seed=8)
    with pytest.raises((EngineLoadFailed, RuntimeError)):
        await upload(house, other)
    assert house.services.catalog.resolve("sql").version == kept
    with pytest.raises(ModelNotFound):
        house.services.catalog.resolve("sql@2")
    with pytest.raises(VersionNotFound):
        await registry(house).get_version("sql", 2)
    assert [r.engine_name for r in house.engine.residency.residents()] == ["sql@1"]
    assert house.staged() == []


async def test_a_first_version_that_does_not_answer_leaves_no_adapter(house: House, folder: Path) -> None:
    house.engine.refuse_probe.add("sql@1")
    with pytest.raises(EngineLoadFailed):
        await upload(house, folder)
    with pytest.raises(AdapterNotFound):
        await house.services.adapters.get("sql")
    house.engine.refuse_probe.clear()
    assert (await upload(house, folder)).number == 2


async def test_an_alias_keeps_no_version_that_does_not_answer(house: House, folder: Path) -> None:
    async def broken(version: Any) -> None:
        # While it is being proved it is registered, so it can be named.
        await house.services.aliases.put("hasty", [AliasTarget(model="sql@1", weight=1)], expected=None)
        raise EngineLoadFailed("sql@1")

    house.engine.probe = broken  # type: ignore[method-assign]
    with pytest.raises(EngineLoadFailed):
        await upload(house, folder)
    with pytest.raises(AdapterNotFound):
        await registry(house).get_adapter("sql")
    await house.services.catalog.refresh()
    with pytest.raises(AliasTargetGone):
        async with house.services.inference.admit("hasty"):
            pytest.fail("it never answered")


async def test_without_set_default_only_the_exact_name_means_it(house: House, folder: Path, tmp_path: Path) -> None:
    first = await upload(house, folder)
    second = await upload(house, write_adapter(tmp_path / "other", seed=8), set_default=False)
    assert house.services.catalog.resolve("sql").version == first
    assert house.services.catalog.resolve("sql@2").version == second


async def test_while_the_engine_starts_a_version_is_taken_unproven(house: House, folder: Path) -> None:
    house.engine.current = "starting"
    version = await upload(house, folder)
    assert house.engine.probed == []
    assert house.services.catalog.resolve("sql").version == version
    house.engine.current = "ready"
    await house.services.adapters.load("sql", None)
    assert house.engine.loaded == ["sql@1"]


async def built_job(house: House, version: AdapterVersion, name: str = "merged") -> Job:
    """A job as the worker leaves it: its version written and served by nobody."""
    jobs: JobRegistry = publisher(house)._jobs
    request = JobRequest("merge", name, {}, f"digest of {name}", True, (version.digest,))
    queued = (await jobs.submit(request)).job
    assert queued is not None
    claimed = await jobs.claim("worker", lease_s=30, max_attempts=1)
    assert claimed is not None
    draft = VersionDraft(
        name=name, digest=version.digest, rank=2, size_bytes=1, module_count=1, base_fingerprint="", source="merge"
    )
    await jobs.finish_built(claimed.id, claimed.fencing_token, draft, {"merge": 1.0})
    return await jobs.get(claimed.id)


async def test_a_built_job_is_published_after_its_probe(house: House, folder: Path) -> None:
    job = await built_job(house, await upload(house, folder))
    with pytest.raises(ModelNotFound):
        house.services.catalog.resolve("merged")
    await publisher(house).publish_built()
    done = await house.services.merges.get(job.id)
    assert done.state == "published"
    assert done.timings.keys() == {"queue", "merge", "register", "probe"}
    assert house.services.catalog.resolve("merged").engine_name == "merged@1"
    assert house.engine.probed[-1] == "merged@1"


@pytest.mark.parametrize("unexpected", [False, True])
async def test_a_built_job_that_does_not_answer_fails_with_its_reason(
    house: House, folder: Path, unexpected: bool
) -> None:
    job = await built_job(house, await upload(house, folder))
    if unexpected:

        async def broken(version: Any) -> None:
            raise RuntimeError("secret of the core")

        house.engine.probe = broken  # type: ignore[method-assign]
    else:
        house.engine.refuse_probe.add("merged@1")
    await publisher(house).publish_built()
    done = await house.services.merges.get(job.id)
    assert done.state == "failed"
    assert done.error is not None
    assert done.error.code == ("internal_error" if unexpected else "engine_load_failed")
    assert "secret" not in done.error.message
    with pytest.raises(AmalgamError):
        await registry(house).get_version("merged", 1)
    assert "merged@1" not in [r.engine_name for r in house.engine.residency.residents()]


async def test_a_built_job_that_holds_nan_never_reaches_the_engine(house: House, folder: Path, tmp_path: Path) -> None:
    """The worker's own check is one door; whatever passed it meets another one here."""
    sound = await upload(house, folder)
    bad = write_adapter(tmp_path / "bad", seed=9)
    weights = bad / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-2:] = b"\xff\xff"  # the last entry of a bfloat16 tensor becomes NaN
    weights.write_bytes(bytes(raw))
    store = house.services.adapters._store
    with store.stage() as staging:
        for path in bad.iterdir():
            staging.receive(path.name, [path.read_bytes()])
        stored = store.publish(staging)
    job = await built_job(house, sound.model_copy(update={"digest": stored.digest}))
    await publisher(house).publish_built()
    done = await house.services.merges.get(job.id)
    assert (done.state, done.error.code if done.error else None) == ("failed", "non_finite")
    assert "merged@1" not in house.engine.loaded
    with pytest.raises(AmalgamError):
        await registry(house).get_version("merged", 1)


async def test_a_job_stays_built_while_the_engine_cannot_prove_it(house: House, folder: Path) -> None:
    job = await built_job(house, await upload(house, folder))
    house.engine.current = "restarting"
    await publisher(house).publish_built()
    assert (await house.services.merges.get(job.id)).state == "built"
    house.engine.current = "ready"

    async def dies(version: Any) -> None:
        raise EngineNotReady("restarting")

    works, house.engine.probe = house.engine.probe, dies  # type: ignore[method-assign]
    with pytest.raises(EngineNotReady):
        await publisher(house).publish_built()
    assert (await house.services.merges.get(job.id)).state == "built"
    house.engine.probe = works  # type: ignore[method-assign]
    await publisher(house).publish_built()
    assert (await house.services.merges.get(job.id)).state == "published"
