"""Opens the store that the settings name: a folder, or a bucket with a folder of copies."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from amalgam.errors.registry import ObjectStoreUnavailable
from amalgam.registry.kept_objects import KeptObjectRegistry
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.artifact_checks import ArtifactChecks
from amalgam.store.bucket import Bucket
from amalgam.store.bucket_store import BucketStore

_ANNOUNCE_S: Final = 30.0
"""The registry is waited for at most so long before files are written."""


async def open_store(
    settings: Settings, objects: KeptObjectRegistry | None, checks: ArtifactChecks | None = None, *, prove: bool = False
) -> AdapterStore:
    """The store of this process; its blocking calls may be made in any thread but the event loop's.

    Args:
        settings: Name the folder and the bucket.
        objects: Told of what is written to the bucket; None where there is none.
        checks: Of the files in the folder, where somebody else checks by them too.
        prove: Whether to ask the bucket first whether it keeps adapters safely.

    Raises:
        StoreUnavailable: the folder cannot be made.
        ObjectStoreUnfit, ObjectStoreUnavailable: the bucket.
    """
    if objects is None:
        return await asyncio.to_thread(AdapterStore.open, settings.storage.store, checks=checks)
    loop, registry = asyncio.get_running_loop(), objects

    def announce(digest: str) -> None:
        asyncio.run_coroutine_threadsafe(registry.touch(digest), loop).result(_ANNOUNCE_S)

    def opened() -> BucketStore:
        bucket = Bucket.open(settings.storage.bucket, settings.adapters.object_endpoint)
        if prove:
            bucket.require_exclusive()
        return _copies(settings, settings.storage.store, bucket, announce, checks)

    return await asyncio.to_thread(opened)


async def open_copies(settings: Settings, root: Path, checks: ArtifactChecks) -> AdapterStore:
    """The store of a process that only reads: nothing is written to the bucket, and no registry is asked.

    Args:
        settings: Name the bucket, if there is one.
        root: Folder of the store, or of the copies.
        checks: Of the files in it.

    Raises:
        StoreUnavailable: the folder cannot be made.
        ObjectStoreUnfit, ObjectStoreUnavailable: the bucket cannot be read.
    """
    if not settings.storage.bucket:
        return await asyncio.to_thread(AdapterStore.open, root, checks=checks)

    def opened() -> BucketStore:
        bucket = Bucket.open(settings.storage.bucket, settings.adapters.object_endpoint)
        bucket.require_readable()
        return _copies(settings, root, bucket, _write_nothing, checks)

    return await asyncio.to_thread(opened)


def _copies(
    settings: Settings, root: Path, bucket: Bucket, announce: Callable[[str], None], checks: ArtifactChecks | None
) -> BucketStore:
    store = BucketStore(
        root,
        bucket,
        announce,
        max_bytes=settings.storage.store_copies_bytes,
        answer_s=settings.engine.load_timeout_s,
        checks=checks,
    )
    store.make_folders()
    return store


def _write_nothing(digest: str) -> None:
    raise ObjectStoreUnavailable(f"this process only reads, and {digest[:12]} is none of its own")
