"""Synthetic adapters for SmolLM2-135M: few files under many names, and their rows in a store not yet in use."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from amalgam.domain.clock import utc_now  # noqa: E402
from amalgam.domain.version import VersionDraft  # noqa: E402
from amalgam.registry.adapters import AdapterRegistry  # noqa: E402
from amalgam.registry.database import Database, sqlite_url  # noqa: E402
from amalgam.store.adapter_store import AdapterStore  # noqa: E402
from amalgam.store.base_model import base_spec  # noqa: E402
from amalgam.store.peft_folder import read_peft_folder  # noqa: E402
from tests.adapter_factory import ALL_MODULES, Dtype, write_lora  # noqa: E402

DISTINCT = 8
"""Different artifacts; beyond these, names share files through hard links, and the store through digests."""


def write_population(
    folder: Path,
    count: int,
    *,
    rank: int = 8,
    modules: Sequence[str] = ALL_MODULES,
    dtype: Dtype = "bfloat16",
    distinct: int = DISTINCT,
) -> dict[str, Path]:
    """``count`` adapter folders by name."""
    folders: dict[str, Path] = {}
    for number in range(count):
        name = f"synthetic-{number:04}"
        folders[name] = folder / name
        if number < distinct:
            # Small weights: the answers stay text, and their length is given by the request anyway.
            write_lora(folders[name], rank=rank, seed=number, std=0.005, modules=modules, dtype=dtype)
            continue
        folders[name].mkdir()
        for file in (folder / f"synthetic-{number % distinct:04}").iterdir():
            os.link(file, folders[name] / file.name)
    return folders


def register_population(store_root: Path, folders: Mapping[str, Path], model: Path, *, max_rank: int) -> None:
    """Give every folder a row in the store's own registry; the same bytes are stored once."""
    asyncio.run(_register(store_root, folders, model, max_rank))


async def _register(store_root: Path, folders: Mapping[str, Path], model: Path, max_rank: int) -> None:
    base = base_spec(model, "smollm2", max_rank)
    store = AdapterStore.open(store_root)
    drafts: dict[int, VersionDraft] = {}
    async with Database.open(sqlite_url(store_root / "registry.sqlite3")) as database:
        registry = AdapterRegistry(database, utc_now)
        for name, folder in folders.items():
            inode = (folder / "adapter_model.safetensors").stat().st_ino
            if inode not in drafts:
                header = read_peft_folder(folder, base).require()
                with store.stage(max_bytes=1 << 30) as staging:
                    for file in folder.iterdir():
                        staging.receive(file.name, [file.read_bytes()])
                    stored = store.publish(staging)
                drafts[inode] = VersionDraft(
                    name=name,
                    digest=stored.digest,
                    rank=header.rank,
                    size_bytes=stored.size_bytes,
                    module_count=len(header.modules),
                    base_fingerprint=base.fingerprint,
                    source="upload",
                )
            await registry.create_version(replace(drafts[inode], name=name))
