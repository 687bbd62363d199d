"""The life of adapters: upload, validate, list, load, delete. A bad one is refused before the engine has seen it."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from amalgam.domain.adapter import Adapter, AdapterVersion, VersionSource, is_name
from amalgam.domain.in_scope import recipe_covered
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.serving_profile import ServingProfile
from amalgam.domain.version import AdapterPage, VersionDraft
from amalgam.engine.protocol import Engine
from amalgam.errors import AmalgamError, NotFound
from amalgam.errors.adapters import ArtifactDamaged, InvalidName, NameReserved, NameTaken
from amalgam.errors.aliases import AliasTargetInUse
from amalgam.errors.limits import StorageSpent
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.pins import PinRegistry
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.catalog import Catalog
from amalgam.services.inference import Inference, loadable
from amalgam.services.new_versions import NewVersion, Report, UploadedFile
from amalgam.services.patience import patiently
from amalgam.services.profiles import ProfileService
from amalgam.services.publish import Publisher
from amalgam.services.retirement import Retirement
from amalgam.services.work_threads import WorkThreads
from amalgam.store.adapter_archive import AdapterArchive
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.canonical_folder import make_canonical
from amalgam.store.file_rules import CONTENT_FILES, KEPT_FILES
from amalgam.store.peft_folder import PeftFolder, read_peft_folder
from amalgam.store.profile_files import read_profile
from amalgam.store.separated_folder import separate_staged
from amalgam.store.sources import Sources
from amalgam.store.staging import Staging

logger = logging.getLogger(__name__)

T = TypeVar("T")

PROOF_S = 60.0
"""It is longer than a server takes from a version's row to its first token."""
WITHDRAWAL_S = 600.0
"""For so long a registry that is away is waited for, to take a version back that did not come into service."""


class AdapterService:
    """Everything the admin plane does with adapters."""

    def __init__(
        self,
        registry: AdapterRegistry,
        store: AdapterStore,
        sources: Sources,
        catalog: Catalog,
        engine: Engine,
        inference: Inference,
        publisher: Publisher,
        max_upload_bytes: int,
        threads: WorkThreads,
        loops: BackgroundLoops,
        pins: PinRegistry,
        retirement: Retirement,
        profiles: ProfileService | None = None,
    ) -> None:
        self._pins = pins
        self._retirement = retirement
        self._registry = registry
        self._store = store
        self._sources = sources
        self._catalog = catalog
        self._engine = engine
        self._inference = inference
        self._publisher = publisher
        self._max_upload_bytes = max_upload_bytes
        self._loops = loops
        self._working: set[asyncio.Task[Any]] = set()
        self._threads = threads
        self._profiles = profiles

    @property
    def spool(self) -> Path:
        """Where the files of an upload wait until all of them are there."""
        return self._store.spool

    async def upload(self, new: NewVersion, files: Iterable[UploadedFile]) -> tuple[AdapterVersion, bool]:
        """Store the files as a new version and put it into service.

        Returns: the version, and False where the default version already held these very bytes.

        Raises:
            InvalidName, NameReserved, NameTaken: the name.
            InvalidAdapter: with every finding.
            StorageSpent: it does not fit into a limit of whose it will be.
            UploadTooLarge, StoreUnavailable, EngineLoadFailed, SlotsBusy.
        """
        self._check_name(new.name)
        with self._store.stage(max_bytes=self._max_upload_bytes) as staging:
            await self._receive(staging, files)
            return await self._take(new, staging, source="upload")

    async def take_source(self, new: NewVersion, source: str) -> tuple[AdapterVersion, bool]:
        """The same from a configured source, such as ``file:///srv/adapters/sql``."""
        self._check_name(new.name)
        with self._store.stage(max_bytes=self._max_upload_bytes) as staging:
            await self._threads.fetch(self._sources.fetch, source, staging)
            return await self._take(new, staging, source="file")

    async def validate_upload(self, files: Iterable[UploadedFile]) -> Report:
        """Everything `upload` would find; changes nothing."""
        with self._store.stage(max_bytes=self._max_upload_bytes) as staging:
            await self._receive(staging, files)
            return await self._report(staging)

    async def validate_source(self, source: str) -> Report:
        """Everything `take_source` would find; changes nothing."""
        with self._store.stage(max_bytes=self._max_upload_bytes) as staging:
            await self._threads.fetch(self._sources.fetch, source, staging)
            return await self._report(staging)

    async def list(self, search: str, limit: int, cursor: str | None, *, scopes: Scopes = EVERYTHING) -> AdapterPage:
        """A page of adapters in scope whose name contains ``search``."""
        patterns = None if scopes.has_every_name else scopes.name_patterns
        return await self._registry.list_adapters(search=search, limit=limit, cursor=cursor, patterns=patterns)

    async def get(self, name: str) -> Adapter:
        """One adapter with its live versions. Raises AdapterNotFound."""
        return await self._registry.get_adapter(name)

    async def get_version(self, name: str, number: int) -> AdapterVersion:
        """One live version. Raises AdapterNotFound, VersionNotFound."""
        return await self._registry.get_version(name, number)

    async def archive(
        self, name: str, number: int, scopes: Scopes = EVERYTHING
    ) -> tuple[AdapterVersion, AdapterArchive]:
        """One live version and its files, without its lineage where that names what is out of scope.

        Raises:
            AdapterNotFound, VersionNotFound, ArtifactDamaged.
        """
        version = await self._registry.get_version(name, number)
        is_shown = recipe_covered((version.lineage or {}).get("recipe", {}), scopes)
        names = KEPT_FILES if is_shown else CONTENT_FILES
        try:
            return version, await asyncio.to_thread(AdapterArchive, await self._store.ready(version.digest), names)
        except OSError as error:
            raise ArtifactDamaged(version.digest) from error

    async def set_default(self, name: str, number: int) -> Adapter:
        """Move the default version. Raises AdapterNotFound, VersionNotFound."""
        await self._registry.set_default(name, number)
        await self._catalog.refresh()
        return await self._registry.get_adapter(name)

    async def describe(self, name: str, description: str) -> Adapter:
        """Change the description. Raises AdapterNotFound."""
        await self._registry.set_description(name, description)
        return await self._registry.get_adapter(name)

    async def load(self, name: str, number: int | None) -> AdapterVersion:
        """Make a version resident, the default one unless a number is given."""
        version = await self._version(name, number)
        await self._load(version)
        return version

    async def _load(self, version: AdapterVersion) -> None:
        await self._engine.load(loadable(version, await self._store.for_engine(version.digest)))
        try:
            await self._registry.get_version(version.name, version.number)
        except NotFound:
            # Deleted meanwhile, and let go of before it was here.
            await self._engine.unload(version.id)
            raise

    async def unload(self, name: str, number: int | None) -> AdapterVersion:
        """Free a version's memory here once nobody uses it, and unpin it; it is loaded again by its next request."""
        version = await self._version(name, number)
        await self._pins.unpin(version.id)
        await self._engine.unload(version.id)
        await self._catalog.refresh()
        return version

    async def pin(self, name: str, number: int | None, *, pinned: bool) -> AdapterVersion:
        """Exempt a version from eviction on every server, loading it here first, or end that."""
        version = await self._version(name, number)
        if pinned:
            await self._load(version)
            await self._pins.pin(version)
        else:
            await self._pins.unpin(version.id)
        await self._engine.pin(version.id, pinned=pinned)
        await self._catalog.refresh()
        return version

    async def verify(self, name: str) -> dict[str, bool]:
        """Read the stored files of every version again; ``name@number`` -> whether they are the bytes published.

        What is damaged is served no more; what was, and is sound again, is.

        Raises:
            AdapterNotFound: no such adapter.
        """
        adapter = await self._registry.get_adapter(name)
        return {str(version.ref): await self._is_sound(version) for version in adapter.versions}

    async def _is_sound(self, version: AdapterVersion) -> bool:
        try:
            await asyncio.to_thread(self._store.verify, version.digest)
        except ArtifactDamaged:
            # Nobody is admitted to it any more; what the engine holds of it goes with the last who was.
            self._retirement.let_go(version)
            return False
        return True

    @property
    def found_damaged(self) -> int:
        """How often stored files were found damaged."""
        return self._store.checks.found_damaged

    async def delete(
        self, name: str, number: int | None = None, *, scopes: Scopes = EVERYTHING
    ) -> Sequence[AdapterVersion]:
        """Hide a version, or the whole adapter, at once; free engine and files when its last request has ended.

        Raises:
            AdapterNotFound, VersionNotFound, DefaultVersionInUse.
            AliasTargetInUse: names those of the aliases that are in ``scopes``.
        """
        try:
            return await self._unbroken(self._delete(name, number))
        except AliasTargetInUse as error:
            raise error.shown(scopes.name) from error

    async def _delete(self, name: str, number: int | None) -> Sequence[AdapterVersion]:
        if number is None:
            gone: Sequence[AdapterVersion] = await self._registry.delete_adapter(name)
        else:
            gone = [await self._registry.delete_version(name, number)]
        for version in gone:
            self._retirement.retire(version)
        await self._catalog.refresh()
        return gone

    async def prove_left(self, timeout_s: float, others_take_s: float = 0.0) -> None:
        """Once the engine is ready: see `Publisher.prove_left`.

        Args:
            timeout_s: Longest wait for the engine.
            others_take_s: For so long other servers may be proving what they registered; a server that starts waits.
        """
        await self._engine.wait_ready(timeout_s)
        await asyncio.sleep(others_take_s)
        await self._publisher.prove_left(others_take_s)

    @property
    def under_way(self) -> int:
        """How many changes have not come to their end, those whose client left among them."""
        return len(self._working)

    async def settle(self) -> None:
        """Wait for running retirements and for uploads whose client left; for tests."""
        await asyncio.gather(self._retirement.settle(), *self._working)

    async def close(self, limit_s: float) -> None:
        """Let uploads whose client left come to an end, for ``limit_s`` seconds; what is left then is withdrawn."""
        if not self._working:
            return
        _, left = await asyncio.wait(self._working, timeout=limit_s)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _version(self, name: str, number: int | None) -> AdapterVersion:
        if number is not None:
            return await self._registry.get_version(name, number)
        adapter = await self._registry.get_adapter(name)
        if adapter.default_version is not None:
            return await self._registry.get_version(name, adapter.default_version)
        return adapter.versions[-1]

    def _check_name(self, name: str) -> None:
        if not is_name(name):
            raise InvalidName(name)
        if name in self._catalog.base.names:
            raise NameReserved(name)
        if name in self._catalog.snapshot.aliases:
            # The registry decides; this spares the upload.
            raise NameTaken.by_alias(name)

    async def _receive(self, staging: Staging, files: Iterable[UploadedFile]) -> None:
        for file in files:
            await self._threads.upload(staging.receive, file.name, file.chunks)

    async def _read(self, staging: Staging) -> PeftFolder:
        base = self._catalog.base
        await self._threads.upload(separate_staged, staging, base)
        base = replace(base, untaken=await self._engine.untaken(base.plain_modules))
        return await self._threads.upload(partial(read_peft_folder, staging.folder, base, left_out=staging.left_out))

    async def _report(self, staging: Staging) -> Report:
        found = await self._read(staging)
        header = found.header
        _, said = await self._threads.upload(read_profile, staging.profile_files)
        return Report(
            findings=(*found.findings, *staging.findings, *said),
            rank=header.rank if header else 0,
            module_count=len(header.modules) if header else 0,
            size_bytes=header.weight_bytes if header else 0,
        )

    async def _take(self, new: NewVersion, staging: Staging, source: VersionSource) -> tuple[AdapterVersion, bool]:
        found = await self._read(staging)
        header = found.require(staging.findings)
        profile, said = await self._threads.upload(read_profile, staging.profile_files)
        if self._profiles is not None:
            said += await self._profiles.judge(profile, is_wanted=new.use_profile)
        await self._threads.upload(make_canonical, staging, found)
        await self._require_storage(new, staging)
        stored = await self._threads.upload(self._store.publish, staging)
        draft = VersionDraft(
            name=new.name,
            digest=stored.digest,
            rank=header.rank,
            size_bytes=stored.size_bytes,
            module_count=len(header.modules),
            base_fingerprint=self._catalog.base.fingerprint,
            source=source,
            warnings=tuple(finding.message for finding in (*found.findings, *staging.findings, *said)),
            dtype=header.dtype,
            request_key=new.request_key,
            stored_by=new.stored_by,
        )
        return await self._unbroken(self._enter(new, draft, profile))

    async def _require_storage(self, new: NewVersion, staging: Staging) -> None:
        """Before files are kept, which only a sweep would remove; what would be no new version takes nothing."""
        if new.stored_by is None:
            return
        try:
            await self._registry.require_storage(new.stored_by, await self._threads.upload(staging.size_bytes))
        except StorageSpent:
            digest = await self._threads.upload(self._store.digest, staging)
            version = await self._catalog.found(lambda: self._catalog.version(new.name))
            if version is None or version.digest != digest:
                raise

    async def _unbroken(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` comes to, which goes on where the client leaves: from its row on nothing is left half done."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _enter(
        self, new: NewVersion, draft: VersionDraft, profile: ServingProfile | None
    ) -> tuple[AdapterVersion, bool]:
        made = await self._registry.create_version(draft, set_default=False, if_absent=new.if_absent, proved=False)
        if not made.created:
            return made.version, False
        try:
            if self._profiles is not None and profile is not None:
                await self._profiles.found(made.version, profile, active=new.use_profile)
            await self._publisher.put_in_service(made.version, set_default=new.set_default)
        except BaseException:
            # The publisher withdraws it, unless the registry is away or this server stops in the moment.
            await asyncio.shield(self._loops.finish("withdrawal", partial(self._withdraw, made.version)))
            raise
        if new.description is not None:
            await self._registry.set_description(new.name, new.description)
        return made.version, True

    async def _withdraw(self, version: AdapterVersion) -> None:
        """Take back a version that did not come into service; tried again while the registry is away."""
        ends_at = time.monotonic() + WITHDRAWAL_S
        withdraw = partial(self._registry.withdraw_version, version.name, version.number)
        try:
            await patiently(withdraw, lambda: ends_at)
        except NotFound:
            return
        finally:
            await self._engine.unload(version.id)
        await self._catalog.refresh()

    def _done(self, task: "asyncio.Task[Any]") -> None:
        """Its caller hears of a failure, unless it left."""
        self._working.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, AmalgamError):
            logger.error("adapter_change_failed", exc_info=error)
