"""The real merge worker, that stops in the middle of an export: `export_victim.py FILE`.

While the file is there it holds the number of tensors after which an export waits, until the file is gone or the
export is cancelled; ``named`` waits between the name and its record.
"""

import sys
import time
from pathlib import Path
from typing import Any

import amalgam.workers.exporter
from amalgam.cli.worker import worker
from amalgam.store.checkpoint_writer import write_checkpoint
from amalgam.store.export_folders import ExportFolders

FILE = Path(sys.argv[1])
publish = ExportFolders.publish


def wait(is_over: Any) -> None:
    FILE.with_suffix(".paused").touch()
    while FILE.exists() and not is_over():
        time.sleep(0.01)


def follow(layout: Any, adapter: Any, folder: Any, *, on_progress: Any, is_cancelled: Any) -> Any:
    def progress(done: int, total: int) -> None:
        on_progress(done, total)
        if FILE.exists() and FILE.read_text() == str(done):
            wait(is_cancelled)

    return write_checkpoint(layout, adapter, folder, on_progress=progress, is_cancelled=is_cancelled)


def named(self: Any, staging: Any, name: str) -> None:
    publish(self, staging, name)
    if FILE.exists() and FILE.read_text() == "named":
        wait(lambda: False)


vars(amalgam.workers.exporter)["write_checkpoint"] = follow
ExportFolders.publish = named  # type: ignore[method-assign]
worker()
