"""What is stored: the store of files, the registry's database, and the catalog that is read of both."""

import asyncio
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from amalgam.domain.adapter import BaseModelSpec
from amalgam.domain.clock import new_id
from amalgam.engine.cpu.moe import adapts_experts
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.jobs import JobRegistry
from amalgam.registry.kept_objects import KeptObjectRegistry
from amalgam.registry.names import NameRegistry
from amalgam.registry.profiles import ProfileRegistry
from amalgam.registry.routers import RouterRegistry
from amalgam.services.adapter_files import open_store
from amalgam.services.catalog import Catalog
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.base_model import base_spec
from amalgam.store.bucket_store import BucketStore
from amalgam.store.file_clock import FileClock
from amalgam.wiring.parts import Parts


@dataclass(frozen=True, slots=True)
class Storage:
    """What is stored, and what is known of it."""

    base: BaseModelSpec
    store: AdapterStore
    database: Database
    registry: AdapterRegistry
    jobs: JobRegistry
    catalog: Catalog
    profiles: ProfileRegistry
    file_clock: FileClock
    objects: KeptObjectRegistry | None
    """It has what was written to the store's bucket; None where it has none."""

    @classmethod
    async def open(cls, parts: Parts) -> "Storage":
        """Open store and database, and read the catalog once."""
        settings, args = parts.settings, parts.args
        first, *others = args.served_model_name
        spec = partial(base_spec, Path(args.model), first, args.max_lora_rank, settings.adapters.max_delta_ratio)
        base = _as_served(await asyncio.to_thread(spec), tuple(others), args)
        # The registry may lie in the same folder, which is for its owner alone.
        await asyncio.to_thread(AdapterStore.open, settings.storage.store)
        opening = Database.open(settings.storage.registry_url, answer_timeout_s=settings.storage.database_timeout_s)
        database = await parts.stack.enter_async_context(opening)
        objects = KeptObjectRegistry(database, database.clock) if settings.storage.bucket else None
        store = await open_store(settings, objects, parts.checks, prove=True)
        registry, jobs = AdapterRegistry(database, database.clock), JobRegistry(database, database.clock, new_id)
        profiles = ProfileRegistry(database, database.clock)
        routers, names = RouterRegistry(database), NameRegistry(database)
        catalog = Catalog(base, registry, profiles, routers, names, settings.storage.catalog_versions)
        await catalog.refresh()
        parts.metrics.registry_read()
        file_clock = await asyncio.to_thread(FileClock, settings.storage.store)
        if isinstance(store, BucketStore):
            store.in_use = lambda: parts.engine.info().digests
            store.is_read_elsewhere = parts.engine.is_elsewhere
        return cls(base, store, database, registry, jobs, catalog, profiles, file_clock, objects)


def _as_served(base: BaseModelSpec, other_names: tuple[str, ...], args: Namespace) -> BaseModelSpec:
    """The base model with what this engine does of it."""
    given: bool | None = getattr(args, "adapts_experts", None)
    return replace(
        base,
        other_names=other_names,
        # Of engines elsewhere it is known from them; here vLLM is asked.
        adapts_experts=adapts_experts() if given is None else given,
        adapts_towers=bool(getattr(args, "enable_tower_connector_lora", False)),
        reads=frozenset() if getattr(args, "language_model_only", False) else base.reads,
    )
