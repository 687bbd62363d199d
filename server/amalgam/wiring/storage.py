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
from amalgam.registry.profiles import ProfileRegistry
from amalgam.services.catalog import Catalog
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.base_model import base_spec
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

    @classmethod
    async def open(cls, parts: Parts) -> "Storage":
        """Open store and database, and read the catalog once."""
        settings, args = parts.settings, parts.args
        first, *others = args.served_model_name
        spec = partial(base_spec, Path(args.model), first, args.max_lora_rank, settings.adapters.max_delta_ratio)
        base = _as_served(await asyncio.to_thread(spec), tuple(others), args)
        store = await asyncio.to_thread(AdapterStore.open, settings.storage.store, checks=parts.checks)
        opening = Database.open(settings.storage.registry_url, answer_timeout_s=settings.storage.database_timeout_s)
        database = await parts.stack.enter_async_context(opening)
        registry, jobs = AdapterRegistry(database, database.clock), JobRegistry(database, database.clock, new_id)
        profiles = ProfileRegistry(database, database.clock)
        catalog = Catalog(base, registry, profiles)
        await catalog.refresh()
        parts.metrics.registry_read()
        file_clock = await asyncio.to_thread(FileClock, settings.storage.store)
        return cls(base, store, database, registry, jobs, catalog, profiles, file_clock)


def _as_served(base: BaseModelSpec, other_names: tuple[str, ...], args: Namespace) -> BaseModelSpec:
    """The base model with what this engine does of it."""
    return replace(
        base,
        other_names=other_names,
        adapts_experts=adapts_experts(),
        adapts_towers=bool(getattr(args, "enable_tower_connector_lora", False)),
        reads=frozenset() if getattr(args, "language_model_only", False) else base.reads,
    )
