"""The part of the merge process that computes, in a thread: read, merge, write, verify."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.diagnostics import MergeForecast
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.fit import FitRecord, ReadingFit
from amalgam.domain.fit_forecast import ReadingNeeds
from amalgam.domain.job import Job
from amalgam.domain.recipe import Recipe
from amalgam.domain.skill_probe import unmeasured
from amalgam.domain.version import VersionDraft
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.aliases import PromptsUnread
from amalgam.errors.merge_run import OutOfMemory
from amalgam.merge.build import BuildOptions, MergeOutcome, build_adapter
from amalgam.merge.rehearse import rehearse
from amalgam.merge.run import RunOptions
from amalgam.merge.sources import TensorSource
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.base_norms import delta_bound
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import AdapterTensors, FolderSink, open_tensors
from amalgam.workers.base_reading import BaseReading, energies
from amalgam.workers.reading_fit import Fitted, Place, read_and_fit, reading_needs

Versions = Mapping[str, AdapterVersion]
"""The keys are the recipe's spellings."""


@dataclass(frozen=True, slots=True)
class Built:
    """What the building thread comes back with."""

    draft: VersionDraft
    timings: dict[str, float]
    """It has the seconds by step: read, merge, write; of a fit that it did itself also fit."""
    fit: FitRecord | None = None
    """That fit came to this."""


class MergeBuilder:
    """Builds merges from the store's adapters into the store."""

    def __init__(self, settings: Settings, store: AdapterStore) -> None:
        self._settings = settings
        self._store = store
        self._bound = delta_bound(settings.exports.base_model, settings.adapters.max_delta_ratio)

    def build(
        self,
        job: Job,
        recipe: Recipe,
        versions: Versions,
        on_progress: Callable[[int, int], None],
        is_cancelled: Callable[[], bool],
    ) -> Built:
        """The version that ``job`` asks for, stored and not yet recorded.

        Args:
            job: What was claimed.
            recipe: Of the job.
            versions: Every adapter of the recipe.
            on_progress: Told (modules done, modules in all).
            is_cancelled: Asked between batches.

        Raises:
            MergeCancelled: ``is_cancelled`` said so. Besides, as `build_adapter`.
        """
        began = time.monotonic()
        opened = {ref: self.open(version) for ref, version in versions.items()}
        read = time.monotonic()
        sources, fit = self._fitted(job, recipe, opened, is_cancelled)
        begun = time.monotonic()
        with self._store.stage() as staging:
            outcome = build_adapter(
                recipe,
                sources,
                FolderSink(staging.folder),
                replace(self.options(versions), notes=notes(job, recipe)),
                on_progress=on_progress,
                is_cancelled=is_cancelled,
            )
            computed = time.monotonic()
            # What we wrote passes the same checks as what others upload.
            header = read_peft_folder(staging.folder, None).require(staging.findings)
            stored = self._store.publish(staging)
        timings = {"read": read - began, "merge": computed - begun, "write": time.monotonic() - computed}
        if fit is not None:
            timings["fit"] = begun - read
        draft = _draft(job, outcome, stored.digest, stored.size_bytes, list(versions.values()))
        assert header.rank == draft.rank
        return Built(draft, timings, fit)

    def _fitted(
        self, job: Job, recipe: Recipe, sources: Mapping[str, TensorSource], is_cancelled: Callable[[], bool]
    ) -> tuple[Mapping[str, TensorSource], FitRecord | None]:
        """The inputs as they are merged, and what was done to them; as they are where nothing is to be fitted."""
        if job.reading is None:
            return sources, None
        record = FitRecord.model_validate(job.fit)
        found = self._read(ReadingFit.model_validate(job.reading), recipe, sources, is_cancelled)
        return found.sources, record.model_copy(update={"tokens": found.tokens, "unread": len(found.unread)})

    def _read(
        self, fit: ReadingFit, recipe: Recipe, sources: Mapping[str, TensorSource], is_over: Callable[[], bool]
    ) -> Fitted:
        """The recipe's inputs, fitted to their prompts; what else it names stays as it is. Raises FitUnread."""
        merging = self._settings.merging
        inputs = {entry.adapter: sources[entry.adapter] for entry in recipe.inputs}
        place = Place(self._settings.exports.base_model, merging.worker_device, merging.merge_workspace_bytes)
        found = read_and_fit(place, inputs, fit, is_over)
        return replace(found, sources={**sources, **found.sources})

    def reading_needs(self) -> ReadingNeeds:
        """What it takes to read prompts here, now. Raises FitUnread where there is no base model."""
        return reading_needs(self._settings.exports.base_model, self._settings.merging.worker_device)

    def rehearse(self, recipe: Recipe, versions: Versions, is_over: Callable[[], bool]) -> MergeForecast:
        """What the merge would give and take, as far as the time goes; nothing is written."""
        sources = {ref: self.open(version) for ref, version in versions.items()}
        return rehearse(recipe, sources, self.options(versions), is_over=is_over)

    def rebuild(
        self,
        recipe: Recipe,
        versions: Versions,
        max_rank: int,
        is_over: Callable[[], bool],
        reading: ReadingFit | None = None,
    ) -> tuple[str, float]:
        """Build it all again beside the store. Returns the digest that it would be stored under, and seconds."""
        began = time.monotonic()
        sources: Mapping[str, TensorSource] = {ref: self.open(version) for ref, version in versions.items()}
        if reading is not None:
            sources = self._read(reading, recipe, sources, is_over).sources
        with self._store.stage() as staging:
            options = self.options(versions, max_rank)
            build_adapter(recipe, sources, FolderSink(staging.folder), options, is_cancelled=is_over)
            return self._store.digest(staging), time.monotonic() - began

    def energies(
        self, versions: Versions, prompts: Sequence[str], is_over: Callable[[], bool]
    ) -> Sequence[Sequence[float]]:
        """How much of what the base model makes of each prompt lies in the row space of each version.

        The base model is in memory meanwhile, and no longer.

        Raises:
            PromptsUnread: there is none here, it is of another kind than transformers reads, or the time is up.
        """
        base = self._settings.exports.base_model
        if base is None:
            raise PromptsUnread("the merge worker has no folder of the base model")
        sources = {ref: self.open(version) for ref, version in versions.items()}
        factors = {
            ref: {module: source.factors(module)[0] for module in source.header.modules}
            for ref, source in sources.items()
        }
        return energies(BaseReading(base), factors, prompts, is_over)

    def options(self, versions: Versions, max_rank: int | None = None) -> BuildOptions:
        """Bounds and circumstances of a merge of ``versions``; the server's largest rank unless another is given."""
        return BuildOptions(
            max_rank=max_rank or self._settings.engine.max_lora_rank,
            run=RunOptions(
                device=self._settings.merging.worker_device,
                max_workspace_bytes=self._settings.merging.merge_workspace_bytes,
            ),
            bases={ref: version.base_fingerprint for ref, version in versions.items()},
            delta_bound=self._bound,
        )

    def open(self, version: AdapterVersion) -> AdapterTensors:
        """The stored tensors of ``version``.

        Raises:
            ArtifactDamaged: its files are not what was stored.
        """
        folder = self._store.path(version.digest)
        self._store.checks.require_sound(version.digest)
        header = read_peft_folder(folder, None, scan_values=False).header
        if header is None:
            raise ArtifactDamaged(version.digest)
        return open_tensors(folder, header, digest=version.digest)


def notes(job: Job, recipe: Recipe) -> tuple[str, ...]:
    """What is to be said of the merge besides what its numbers say: that nothing measures what it keeps."""
    return unmeasured(recipe) if job.probe is None and job.fit is None else ()


def _draft(
    job: Job, outcome: MergeOutcome, digest: str, size_bytes: int, inputs: Sequence[AdapterVersion]
) -> VersionDraft:
    return VersionDraft(
        name=job.name,
        digest=digest,
        rank=outcome.rank,
        size_bytes=size_bytes,
        module_count=outcome.module_count,
        base_fingerprint=inputs[0].base_fingerprint,
        source="merge",
        recipe_digest=job.recipe_digest,
        lineage=outcome.lineage,
        warnings=outcome.warnings,
        dtype=outcome.recipe.output.dtype,
    )


def failure(error: Exception) -> ErrorReport:
    """The report of one of our errors; anything else is a fault of the server, whose log has the trace."""
    if is_out_of_memory(error):
        error = OutOfMemory()
    if isinstance(error, AmalgamError):
        return ErrorReport.of(error)
    return ErrorReport(code="internal_error", status=500, message="The merge failed. The worker's log says why.")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or here; torch says the latter in words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
