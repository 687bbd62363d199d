"""Stored files, and what answers batches of requests."""

import asyncio
from dataclasses import dataclass

from amalgam.domain.clock import new_batch_id, new_file_id, new_server_name
from amalgam.registry.batches import BatchRegistry
from amalgam.registry.files import FileRegistry
from amalgam.services.batch_check import BatchCheck
from amalgam.services.batch_end import BatchEnd
from amalgam.services.batch_lines import LineAsker
from amalgam.services.batch_run import BatchRunner
from amalgam.services.batches import BatchService
from amalgam.services.files import FileRetention, FileService
from amalgam.store.batch_answers import BatchRuns
from amalgam.store.file_store import FileStore
from amalgam.wiring.making import spare_capacity
from amalgam.wiring.parts import Parts
from amalgam.wiring.storage import Storage


@dataclass(frozen=True, slots=True)
class Batching:
    """Files, batches, who answers them, and who forgets them."""

    files: FileService
    batches: BatchService
    runner: BatchRunner
    retention: FileRetention

    @classmethod
    async def open(cls, parts: Parts, kept: Storage, asker: LineAsker) -> "Batching":
        """Lines are asked as their keys' requests, through ``asker``."""
        given, database = parts.settings.batches, kept.database
        store = await asyncio.to_thread(FileStore.open, kept.store.root)
        runs = await asyncio.to_thread(BatchRuns.open, kept.store.root)
        file_rows, rows = FileRegistry(database, database.clock), BatchRegistry(database, database.clock, new_batch_id)
        line_bytes = parts.settings.http.max_body_bytes
        check = BatchCheck(store, asker, given.batch_max_lines, line_bytes)
        end = BatchEnd(rows, store, runs, new_file_id)
        spare, holder = spare_capacity(parts), new_server_name()
        runner = BatchRunner(rows, runs, check, asker, end, spare, holder, given.batch_concurrency, parts.metrics)
        files = FileService(file_rows, store, given.file_max_bytes, new_file_id)
        retention = FileRetention(file_rows, rows, store, runs, kept.file_clock, given.batch_keep_days)
        return cls(files, BatchService(rows, file_rows, runner.wake), runner, retention)
