from pathlib import Path
from typing import Any

import pytest

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.alias import AliasTarget
from amalgam.domain.job import Job, JobRequest
from amalgam.domain.version import VersionDraft
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import AdapterNotFound, InvalidAdapter, VersionNotFound
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady, NonFiniteOutput
from amalgam.errors.requests import ModelNotFound
from amalgam.services.new_versions import NewVersion, UploadedFile
from tests.support.running_app import RunningApp, write_adapter
from tests.unit.services.conftest import Publishing


def files(folder: Path) -> list[UploadedFile]:
    return [UploadedFile(path.name, iter([path.read_bytes()])) for path in folder.iterdir()]


async def upload(running_app: RunningApp, folder: Path, name: str = "sql", **more: Any) -> AdapterVersion:
    version, _ = await running_app.services.adapters.upload(NewVersion(name, **more), files(folder))
    return version


async def test_a_version_is_loaded_and_probed_before_its_name_means_it(running_app: RunningApp, folder: Path) -> None:
    version = await upload(running_app, folder)
    assert (running_app.engine.loaded, running_app.engine.probed) == (["sql@1"], ["sql@1"])
    assert running_app.services.catalog.resolve("sql").version == version


@pytest.mark.parametrize("failure", ["load", "probe", "unexpected"])
async def test_a_version_that_does_not_answer_moves_no_pointer_and_is_taken_back(
    publishing: Publishing, folder: Path, tmp_path: Path, failure: str
) -> None:
    kept = await upload(publishing.app, folder)
    if failure == "unexpected":

        async def broken(version: Any) -> None:
            raise RuntimeError("core")

        publishing.app.engine.probe = broken  # type: ignore[method-assign]
    else:
        (publishing.app.engine.refuse_load if failure == "load" else publishing.app.engine.refuse_probe).add("sql@2")
    other = write_adapter(tmp_path / "other", seed=8)
    with pytest.raises((EngineLoadFailed, RuntimeError)):
        await upload(publishing.app, other)
    assert publishing.app.services.catalog.resolve("sql").version == kept
    with pytest.raises(ModelNotFound):
        publishing.app.services.catalog.resolve("sql@2")
    with pytest.raises(VersionNotFound):
        await publishing.stored.versions.get_version("sql", 2)
    assert [r.engine_name for r in publishing.app.engine.residency.residents()] == ["sql@1"]
    assert publishing.app.staged() == []


async def test_a_version_whose_probe_gives_nan_is_a_bad_adapter(publishing: Publishing, folder: Path) -> None:
    async def not_finite(version: Any) -> None:
        raise NonFiniteOutput(version.engine_name)

    job = await built_job(publishing, await upload(publishing.app, folder))
    publishing.app.engine.probe = not_finite  # type: ignore[method-assign]
    with pytest.raises(InvalidAdapter) as caught:
        await upload(publishing.app, folder, name="other")
    assert (caught.value.code, caught.value.status) == ("non_finite_output", 422)
    with pytest.raises(AdapterNotFound):
        await publishing.stored.versions.get_adapter("other")
    await publishing.publisher.publish_built()
    failed = await publishing.app.services.merges.get(job.id)
    assert (failed.state, failed.error and failed.error.code) == ("failed", "non_finite_output")


async def test_a_first_version_that_does_not_answer_leaves_no_adapter(running_app: RunningApp, folder: Path) -> None:
    running_app.engine.refuse_probe.add("sql@1")
    with pytest.raises(EngineLoadFailed):
        await upload(running_app, folder)
    with pytest.raises(AdapterNotFound):
        await running_app.services.adapters.get("sql")
    running_app.engine.refuse_probe.clear()
    assert (await upload(running_app, folder)).number == 2


async def test_nobody_can_name_a_version_before_it_has_answered(publishing: Publishing, folder: Path) -> None:
    """Nor make an alias of it, which would mean nothing once it is withdrawn."""

    async def broken(version: Any) -> None:
        await publishing.app.services.catalog.refresh()
        for name in ("sql", "sql@1"):
            with pytest.raises(ModelNotFound):
                publishing.app.services.catalog.resolve(name)
        with pytest.raises(ModelNotFound):
            await publishing.app.services.aliases.put("hasty", [AliasTarget(model="sql@1", weight=1)], expected=None)
        raise EngineLoadFailed("sql@1")

    publishing.app.engine.probe = broken  # type: ignore[method-assign]
    with pytest.raises(EngineLoadFailed):
        await upload(publishing.app, folder)
    with pytest.raises(AdapterNotFound):
        await publishing.stored.versions.get_adapter("sql")


async def test_without_set_default_only_the_exact_name_means_it(
    running_app: RunningApp, folder: Path, tmp_path: Path
) -> None:
    first = await upload(running_app, folder)
    second = await upload(running_app, write_adapter(tmp_path / "other", seed=8), set_default=False)
    assert running_app.services.catalog.resolve("sql").version == first
    assert running_app.services.catalog.resolve("sql@2").version == second


async def test_while_the_engine_starts_a_version_is_taken_unproven(running_app: RunningApp, folder: Path) -> None:
    running_app.engine.current = "starting"
    version = await upload(running_app, folder)
    assert running_app.engine.probed == []
    assert running_app.services.catalog.resolve("sql").version == version
    running_app.engine.current = "ready"
    await running_app.services.adapters.load("sql", None)
    assert running_app.engine.loaded == ["sql@1"]


async def built_job(publishing: Publishing, version: AdapterVersion, name: str = "merged") -> Job:
    """A job as the worker leaves it: its version written and served by nobody."""
    jobs = publishing.stored.jobs
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


async def test_a_built_job_whose_weights_are_too_large_is_not_published(publishing: Publishing, tmp_path: Path) -> None:
    """Whatever built it: the bound is that of this server's base model."""
    store = publishing.stored.files
    with store.stage() as staging:
        for path in write_adapter(tmp_path / "huge", std=0.02e12).iterdir():
            staging.receive(path.name, iter([path.read_bytes()]))
        stored = store.publish(staging)
    version = (await upload(publishing.app, write_adapter(tmp_path / "fine", seed=3))).model_copy(
        update={"digest": stored.digest}
    )
    job = await built_job(publishing, version)
    await publishing.publisher.publish_built()
    failed = await publishing.app.services.merges.get(job.id)
    assert (failed.state, failed.error and failed.error.code) == ("failed", "delta_too_large")
    assert "merged@1" not in publishing.app.engine.loaded


async def test_a_built_job_is_published_after_its_probe(publishing: Publishing, folder: Path) -> None:
    job = await built_job(publishing, await upload(publishing.app, folder))
    with pytest.raises(ModelNotFound):
        publishing.app.services.catalog.resolve("merged")
    await publishing.publisher.publish_built()
    done = await publishing.app.services.merges.get(job.id)
    assert done.state == "published"
    assert done.timings.keys() == {"queue", "merge", "register", "probe"}
    assert publishing.app.services.catalog.resolve("merged").engine_name == "merged@1"
    assert publishing.app.engine.probed[-1] == "merged@1"


@pytest.mark.parametrize("unexpected", [False, True])
async def test_a_built_job_that_does_not_answer_fails_with_its_reason(
    publishing: Publishing, folder: Path, unexpected: bool
) -> None:
    job = await built_job(publishing, await upload(publishing.app, folder))
    if unexpected:

        async def broken(version: Any) -> None:
            raise RuntimeError("secret of the core")

        publishing.app.engine.probe = broken  # type: ignore[method-assign]
    else:
        publishing.app.engine.refuse_probe.add("merged@1")
    await publishing.publisher.publish_built()
    done = await publishing.app.services.merges.get(job.id)
    assert done.state == "failed"
    assert done.error is not None
    assert done.error.code == ("internal_error" if unexpected else "engine_load_failed")
    assert "secret" not in done.error.message
    with pytest.raises(AmalgamError):
        await publishing.stored.versions.get_version("merged", 1)
    assert "merged@1" not in [r.engine_name for r in publishing.app.engine.residency.residents()]


async def test_a_built_job_that_holds_nan_never_reaches_the_engine(
    publishing: Publishing, folder: Path, tmp_path: Path
) -> None:
    """The worker checks what it builds; whatever passed there is checked once more here."""
    sound = await upload(publishing.app, folder)
    bad = write_adapter(tmp_path / "bad", seed=9)
    weights = bad / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-2:] = b"\xff\xff"  # the last entry of a bfloat16 tensor becomes NaN
    weights.write_bytes(bytes(raw))
    store = publishing.stored.files
    with store.stage() as staging:
        for path in bad.iterdir():
            staging.receive(path.name, [path.read_bytes()])
        stored = store.publish(staging)
    job = await built_job(publishing, sound.model_copy(update={"digest": stored.digest}))
    await publishing.publisher.publish_built()
    done = await publishing.app.services.merges.get(job.id)
    assert (done.state, done.error.code if done.error else None) == ("failed", "non_finite")
    assert "merged@1" not in publishing.app.engine.loaded
    with pytest.raises(AmalgamError):
        await publishing.stored.versions.get_version("merged", 1)


async def test_a_job_stays_built_while_the_engine_cannot_prove_it(publishing: Publishing, folder: Path) -> None:
    job = await built_job(publishing, await upload(publishing.app, folder))
    publishing.app.engine.current = "restarting"
    await publishing.publisher.publish_built()
    assert (await publishing.app.services.merges.get(job.id)).state == "built"
    publishing.app.engine.current = "ready"

    async def dies(version: Any) -> None:
        raise EngineNotReady("restarting")

    works, publishing.app.engine.probe = publishing.app.engine.probe, dies  # type: ignore[method-assign]
    with pytest.raises(EngineNotReady):
        await publishing.publisher.publish_built()
    assert (await publishing.app.services.merges.get(job.id)).state == "built"
    publishing.app.engine.probe = works  # type: ignore[method-assign]
    await publishing.publisher.publish_built()
    assert (await publishing.app.services.merges.get(job.id)).state == "published"
