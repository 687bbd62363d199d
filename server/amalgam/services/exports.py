"""Exports: base model + adapter as a checkpoint folder. Refusals come first; the merge worker writes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.export import ExportDtype, ExportRecord, ExportSpec
from amalgam.domain.job import Job, JobRequest
from amalgam.domain.recipe import Recipe
from amalgam.errors.exports import ExportsOff
from amalgam.errors.merging import BaseMismatch
from amalgam.merge.plan import MergePlan, require_export_room
from amalgam.registry.jobs import JobRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.merges import MergeService, raise_where_failed
from amalgam.services.worker_link import WorkerLink
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.checkpoint_layout import lay_out
from amalgam.store.export_folders import ExportFolders, read_record


@dataclass(frozen=True, slots=True)
class ExportAnswer:
    """What a submission came to: an export that exists, or a job that will write it."""

    record: ExportRecord | None
    job: Job | None
    plan: MergePlan
    """It says what is added, and what of it will be cut."""


class ExportService:
    """Submits exports and knows those that there are; the folders are the truth about them."""

    def __init__(
        self,
        jobs: JobRegistry,
        store: AdapterStore,
        catalog: Catalog,
        merges: MergeService,
        worker: WorkerLink,
        folders: ExportFolders | None,
        base: Path,
        workspace_bytes: int,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._catalog = catalog
        self._merges = merges
        self._worker = worker
        self._folders = folders
        self._base = base
        self._workspace_bytes = workspace_bytes

    async def submit(
        self, name: str, recipe: Recipe, *, dtype: ExportDtype, max_shard_bytes: int, dequantize: bool = False
    ) -> ExportAnswer:
        """Queue the export, or answer with the one that is there or under way under this name.

        Raises:
            ExportsOff: no root is configured.
            InvalidName, NameTaken: the name.
            ModelNotFound, MissingInput, errors.merging: the recipe, as of a merge.
            BaseMismatch: an input of another base model.
            TiedEmbeddings, BaseNotExportable, InvalidAdapter, DiskTooSmall: what cannot be added or stored.
            ExportRankTooLarge: what cannot be computed without being cut, and nobody said to which rank.
        """
        folders = self._require_folders()
        found = await asyncio.to_thread(folders.find, name)
        base = await asyncio.to_thread(read_record, self._base)
        plan = await self._merges.plan(recipe, exports=True)
        versions = await self._merges.versions_of(plan.recipe)
        self._check_bases(versions)
        spec = ExportSpec(
            recipe=plan.recipe,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            dequantize=dequantize,
            input_digests={str(version.ref): version.digest for version in versions},
            base_fingerprint=self._catalog.base.fingerprint,
            base_weights_digest=None if base is None else base.weights_digest,
        )
        if found is not None:
            if found.export_digest != spec.digest():
                raise folders.taken(name)
            return ExportAnswer(found, None, plan)
        await asyncio.to_thread(self._check_layout, folders, spec, plan)
        request = JobRequest(
            kind="export",
            name=name,
            recipe=spec.model_dump(mode="json"),
            recipe_digest=spec.digest(),
            set_default=False,
            input_digests=tuple(version.digest for version in versions),
        )
        submission = await self._jobs.submit_export(request)
        if submission.created:
            self._worker.wake()
        return ExportAnswer(None, submission.job, plan)

    def _check_bases(self, versions: Sequence[AdapterVersion]) -> None:
        served = self._catalog.base
        others = [(str(v.ref), v.base_fingerprint[:12]) for v in versions if v.base_fingerprint != served.fingerprint]
        if others:
            raise BaseMismatch([(served.served_name, served.fingerprint[:12]), *others])

    def _check_layout(self, folders: ExportFolders, spec: ExportSpec, plan: MergePlan) -> None:
        """Every refusal that the worker would come to without a tensor, before anything is queued."""
        require_export_room(plan, self._workspace_bytes)
        adapted = {module.name: module.inputs[0].header for module in plan.modules}
        layout = lay_out(
            self._base,
            adapted,
            dtype=spec.dtype,
            max_shard_bytes=spec.max_shard_bytes,
            dequantize=spec.dequantize,
        )
        folders.require_room(layout.size_bytes)

    async def finished(self, job: Job) -> ExportRecord:
        """The export that a published job wrote.

        Raises:
            ReportedError: the job failed or was cancelled; carries its code and status.
            ExportNotFound: its folder was taken away since.
        """
        raise_where_failed(job)
        return await self.get(job.name)

    async def get(self, name: str) -> ExportRecord:
        """The record of an export. Raises ExportsOff, ExportNotFound."""
        return await asyncio.to_thread(self._require_folders().get, name)

    async def list(self) -> dict[str, ExportRecord]:
        """Every export, in order of name. Raises ExportsOff."""
        return await asyncio.to_thread(self._require_folders().list)

    def _require_folders(self) -> ExportFolders:
        if self._folders is None:
            raise ExportsOff
        return self._folders
