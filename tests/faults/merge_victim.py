"""The real merge worker, one module a batch, that does what a file tells it to: `merge_victim.py FILE`.

The file holds one JSON object; while it is there, builds follow it: ``{"pause_at": n}`` stops after n modules until the
file is gone or the merge is cancelled, ``{"exhaust": true}`` asks for more memory than there is, ``{"poison": true}``
makes the rule return NaN, and ``{"poison": "file"}`` writes it past every check of the merge.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import amalgam.workers.merge_build
from amalgam.cli.worker import worker
from amalgam.merge import run
from amalgam.merge.build import build_adapter
from amalgam.merge.spaces import merge_stack
from amalgam.store.tensor_files import FolderSink

FILE = Path(sys.argv[1])


class Poisoned(FolderSink):
    """Writes NaN whatever it is given."""

    def write(self, tensors: Any, config: Any, lineage: Any) -> None:
        nan = {name: (torch.full_like(a, float("nan")), b) for name, (a, b) in tensors.items()}
        super().write(nan, config, lineage)


def follow(recipe: Any, sources: Any, sink: Any, options: Any, *, is_cancelled: Any, on_progress: Any = None) -> Any:
    if on_progress is None:  # a question, not a job
        return build_adapter(recipe, sources, sink, options, is_cancelled=is_cancelled)
    plan = json.loads(FILE.read_text()) if FILE.exists() else {}

    def progress(done: int, total: int) -> None:
        on_progress(done, total)
        if done == plan.get("pause_at"):
            FILE.with_suffix(".paused").touch()
            while FILE.exists() and not is_cancelled():
                time.sleep(0.01)

    def poisoned(stack: Any, around: Any) -> Any:
        factors = merge_stack(stack, around)
        return dataclasses.replace(factors, B=torch.full_like(factors.B, float("nan")))

    if plan.get("exhaust"):
        torch.empty(1 << 60, dtype=torch.uint8)
    vars(run)["merge_stack"] = poisoned if plan.get("poison") is True else merge_stack
    if plan.get("poison") == "file":
        sink = Poisoned(sink.folder)
    return build_adapter(recipe, sources, sink, options, on_progress=progress, is_cancelled=is_cancelled)


# It is started again and again, on a machine that runs tests.
os.nice = lambda increment: 0
vars(amalgam.workers.merge_build)["build_adapter"] = follow
run.BATCH_BYTES = 1  # type: ignore[misc]
worker()
