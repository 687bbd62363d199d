"""The life of adapters: upload, validate, list, load, delete. A bad one is refused before the engine has seen it."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amalgam.domain.adapter import Adapter, AdapterVersion, is_name
from amalgam.domain.clock import Clock
from amalgam.domain.version import AdapterPage, VersionDraft
from amalgam.engine.protocol import Engine
from amalgam.errors.adapters import ArtifactDamaged, InvalidName, NameReserved, NameTaken
from amalgam.errors.findings import Finding
from amalgam.registry.adapters import AdapterRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.inference import Inference, loadable
from amalgam.services.publish import Publisher
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.peft_folder import PeftFolder, read_peft_folder
from amalgam.store.sources import Sources
from amalgam.store.staging import Staging

FILE_GRACE_S = 15.0
"""Longer than any pause between publishing files and committing the row that names them."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What an upload asks for beside its files."""

    name: str
    description: str | None = None
    set_default: bool = True
    if_absent: bool = False
    """Refuse with NameTaken where the adapter exists."""
    request_key: str | None = None
    """Of the request, where it has an idempotency key."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a dry run."""

    findings: tuple[Finding, ...]
    rank: int
    module_count: int
    size_bytes: int

    @property
    def valid(self) -> bool:
        """Whether the adapter would be taken."""
        return not any(finding.severity == "error" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """One file of an upload."""

    name: str
    chunks: Iterable[bytes]
    """Its bytes in pieces; reading them may block, so it is done in a thread."""


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
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._store = store
        self._sources = sources
        self._catalog = catalog
        self._engine = engine
        self._inference = inference
        self._publisher = publisher
        self._max_upload_bytes = max_upload_bytes
        self._clock = clock
        self._retiring: set[asyncio.Task[None]] = set()

    async def upload(self, new: NewVersion, files: Iterable[UploadedFile]) -> tuple[AdapterVersion, bool]:
        """Store the files as a new version and put it into service.

        Returns: the version, and False where the default version already held these very bytes.

        Raises:
            InvalidName, NameReserved, NameTaken: the name.
            InvalidAdapter: with every finding.
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
            await asyncio.to_thread(self._sources.fetch, source, staging)
            return await self._take(new, staging, source="file")

    async def validate_upload(self, files: Iterable[UploadedFile]) -> Report:
        """Everything `upload` would find; changes nothing."""
        with self._store.stage(max_bytes=self._max_upload_bytes) as staging:
            await self._receive(staging, files)
            return await self._report(staging)

    async def validate_source(self, source: str) -> Report:
        """Everything `take_source` would find; changes nothing."""
        with self._store.stage(max_bytes=self._max_upload_bytes) as staging:
            await asyncio.to_thread(self._sources.fetch, source, staging)
            return await self._report(staging)

    async def list(self, search: str, limit: int, cursor: str | None) -> AdapterPage:
        """A page of adapters whose name contains ``search``."""
        return await self._registry.list_adapters(search=search, limit=limit, cursor=cursor)

    async def get(self, name: str) -> Adapter:
        """One adapter with its live versions. Raises AdapterNotFound."""
        return await self._registry.get_adapter(name)

    async def get_version(self, name: str, number: int) -> AdapterVersion:
        """One live version. Raises AdapterNotFound, VersionNotFound."""
        return await self._registry.get_version(name, number)

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
        await self._engine.load(loadable(version, self._store.path(version.digest)))
        return version

    async def unload(self, name: str, number: int | None) -> AdapterVersion:
        """Free a version's memory once nobody uses it; it is loaded again by its next request."""
        version = await self._version(name, number)
        await self._engine.unload(version.id)
        return version

    async def pin(self, name: str, number: int | None, *, pinned: bool) -> AdapterVersion:
        """Exempt a version from eviction, loading it first, or end that."""
        version = await self._version(name, number)
        if pinned:
            await self._engine.load(loadable(version, self._store.path(version.digest)))
        await self._engine.pin(version.id, pinned=pinned)
        return version

    async def verify(self, name: str) -> dict[str, bool]:
        """Read the stored files of every version again; ``name@number`` -> whether they are the bytes published.

        Raises:
            AdapterNotFound: no such adapter.
        """
        adapter = await self._registry.get_adapter(name)
        return {
            str(version.ref): await asyncio.to_thread(self._is_sound, version.digest) for version in adapter.versions
        }

    def _is_sound(self, digest: str) -> bool:
        try:
            self._store.verify(digest)
        except ArtifactDamaged:
            return False
        return True

    async def delete(self, name: str, number: int | None = None) -> Sequence[AdapterVersion]:
        """Hide a version, or the whole adapter, at once; free engine and files when its last request has ended."""
        if number is None:
            gone: Sequence[AdapterVersion] = await self._registry.delete_adapter(name)
        else:
            gone = [await self._registry.delete_version(name, number)]
        await self._catalog.refresh()
        for version in gone:
            task = asyncio.create_task(self._retire(version), name=f"retire {version.ref}")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return gone

    async def _retire(self, version: AdapterVersion) -> None:
        await self._inference.drained(version.id)
        await self._engine.unload(version.id)
        # Another version, or a job's input, may be these very bytes; the registry knows. Files that were published a
        # moment ago may be about to get a row, so they are given time.
        while not await self._registry.is_digest_in_use(version.digest):
            now = self._clock().timestamp()
            if await asyncio.to_thread(self._store.remove, version.digest, now=now, grace_s=FILE_GRACE_S):
                return
            await asyncio.sleep(FILE_GRACE_S)

    async def settle(self) -> None:
        """Wait for running retirements; for shutdown and tests."""
        await asyncio.gather(*self._retiring)

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
        if name == self._catalog.base.served_name:
            raise NameReserved(name)
        if name in self._catalog.snapshot.aliases:
            # The registry decides; this spares the upload.
            raise NameTaken.by_alias(name)

    async def _receive(self, staging: Staging, files: Iterable[UploadedFile]) -> None:
        for file in files:
            await asyncio.to_thread(staging.receive, file.name, file.chunks)

    async def _read(self, staging: Staging) -> PeftFolder:
        return await asyncio.to_thread(read_peft_folder, staging.folder, self._catalog.base)

    async def _report(self, staging: Staging) -> Report:
        found = await self._read(staging)
        header = found.header
        return Report(
            findings=(*found.findings, *staging.findings),
            rank=header.rank if header else 0,
            module_count=len(header.modules) if header else 0,
            size_bytes=header.weight_bytes if header else 0,
        )

    async def _take(self, new: NewVersion, staging: Staging, source: str) -> tuple[AdapterVersion, bool]:
        found = await self._read(staging)
        header = found.require(staging.findings)
        stored = await asyncio.to_thread(self._store.publish, staging)
        draft = VersionDraft(
            name=new.name,
            digest=stored.digest,
            rank=header.rank,
            size_bytes=stored.size_bytes,
            module_count=len(header.modules),
            base_fingerprint=self._catalog.base.fingerprint,
            source=source,
            warnings=tuple(finding.message for finding in (*found.findings, *staging.findings)),
            request_key=new.request_key,
        )
        made = await self._registry.create_version(draft, set_default=False, if_absent=new.if_absent)
        if made.created:
            await self._publisher.put_in_service(made.version, set_default=new.set_default)
            if new.description is not None:
                await self._registry.set_description(new.name, new.description)
        return made.version, made.created
