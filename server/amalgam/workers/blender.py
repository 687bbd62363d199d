"""The blend process: builds what requests describe in their ``model`` field, while their clients wait.

It holds torch and the inputs it has seen, knows no SQL and no HTTP, and reads one order a line until its input ends.
What it cannot build is an answer with a code. The kernel takes it first when memory ends: the server starts it again.
"""

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.domain.delta_bound import DeltaBound
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.messages import BlendBuilt, BlendInput, BlendOrder, Refusal
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.blends import BlendFailed
from amalgam.merge.build import BuildOptions, build_adapter
from amalgam.merge.run import RunOptions
from amalgam.settings import Settings
from amalgam.store.base_norms import delta_bound
from amalgam.store.disk import disk_errors
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import AdapterTensors, open_tensors, write_adapter
from amalgam.workers.server_line import orders, say

logger = logging.getLogger(__name__)

_KEPT_INPUTS: Final = 32
_FIRST_TO_GO: Final = "1000"


class RememberedTensors:
    """One input, whose tensors are mapped once: to map them costs more than to merge them."""

    def __init__(self, tensors: AdapterTensors, folder: Path) -> None:
        self._tensors = tensors
        self.folder = folder
        self.header = tensors.header
        self.digest = tensors.digest
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """See `TensorSource`."""
        found = self._factors.get(module)
        if found is None:
            found = self._factors[module] = self._tensors.factors(module)
        return found


class _Sink:
    """Writes without a wait for the disk, since nothing has to outlive the server; notes when it began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began = 0.0

    def write(
        self, tensors: Mapping[str, tuple[Tensor, Tensor]], config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        """See `AdapterSink`."""
        self.began = time.perf_counter()
        with disk_errors():
            write_adapter(self.folder, tensors, config, lineage)

    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


class Blender:
    """Builds orders, one at a time.

    Args:
        run: how to compute.
        bound: on what a blend may change.
    """

    def __init__(self, run: RunOptions, bound: DeltaBound) -> None:
        self._run = run
        self._bound = bound
        self._inputs: OrderedDict[str, RememberedTensors] = OrderedDict()

    def answer(self, order: BlendOrder) -> BlendBuilt | Refusal:
        """Build ``order``, or say why not."""
        try:
            return self._build(order)
        except AmalgamError as error:
            return Refusal(id=order.id, error=ErrorReport.of(error))
        except Exception:
            logger.exception("blend_failed")
            return Refusal(id=order.id, error=ErrorReport.of(BlendFailed()))

    def _build(self, order: BlendOrder) -> BlendBuilt:
        began = time.perf_counter()
        sources = {ref: self._open(given) for ref, given in order.inputs.items()}
        bases: dict[str, str | None] = {ref: given.base for ref, given in order.inputs.items()}
        opened = time.perf_counter()
        sink = _Sink(Path(order.folder))
        options = BuildOptions(
            max_rank=order.max_rank,
            run=self._run,
            bases=bases,
            max_output_bytes=order.max_bytes,
            delta_bound=self._bound,
        )
        outcome = build_adapter(order.recipe, sources, sink, options)
        seconds = {"read": opened - began, "merge": sink.began - opened, "write": time.perf_counter() - sink.began}
        return BlendBuilt(id=order.id, size_bytes=sink.size_bytes(), rank=outcome.rank, seconds=seconds)

    def _open(self, given: BlendInput) -> RememberedTensors:
        """The input, opened once; inputs that were deleted since are forgotten, so that their bytes are freed."""
        for digest in [digest for digest, kept in self._inputs.items() if not kept.folder.is_dir()]:
            del self._inputs[digest]
        found = self._inputs.get(given.digest)
        if found is None:
            folder = Path(given.folder)
            try:
                header = read_peft_folder(folder, None, scan_values=False).header
            except OSError as error:
                raise ArtifactDamaged(given.digest) from error
            if header is None:
                raise ArtifactDamaged(given.digest)
            found = RememberedTensors(open_tensors(folder, header, digest=given.digest), folder)
            self._inputs[given.digest] = found
        self._inputs.move_to_end(given.digest)
        if len(self._inputs) > _KEPT_INPUTS:
            self._inputs.popitem(last=False)
        return found


class _Invented:
    """A small adapter for the first merge, which pays for what torch sets up on first use."""

    digest = "0" * 64

    def __init__(self) -> None:
        module = ModuleHeader("model.layers.0.mlp.up_proj", 2, 8, 8, 1.0, "BF16")
        self.header = AdapterHeader({module.name: module}, None, 64)

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """See `TensorSource`."""
        return torch.eye(2, 8, dtype=torch.bfloat16), torch.eye(8, 2, dtype=torch.bfloat16)


class _Nowhere:
    def write(
        self, tensors: Mapping[str, tuple[Tensor, Tensor]], config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        """See `AdapterSink`."""


def warm_up(run: RunOptions) -> None:
    """Merge something small by a linear and by an elected rule."""
    sources = {"a": _Invented(), "b": _Invented()}
    inputs = tuple(RecipeInput(adapter=name) for name in sources)
    for method in ("task_arithmetic", "ties"):
        recipe = Recipe(method=method, inputs=inputs)
        build_adapter(recipe, sources, _Nowhere(), BuildOptions(max_rank=4, run=run))


def serve_orders(blender: Blender, lines: Iterable[bytes], replies: BinaryIO) -> None:
    """Answer every order until the input ends."""
    for order in orders(lines):
        say(blender.answer(order), replies)


def _go_first() -> None:
    """Ask the kernel to end this process, and not the server or its engine, when memory runs out."""
    try:
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    except OSError as error:
        logger.warning("oom_score_kept reason=%s", error.strerror)


def run_blender(settings: Settings) -> None:
    """Serve orders on standard input and output until the input ends."""
    _go_first()
    torch.set_num_threads(settings.merging.worker_threads)
    run = RunOptions(
        device=settings.merging.worker_device,
        max_workspace_bytes=settings.merging.merge_workspace_bytes,
        diagnostics=False,
    )
    warm_up(run)
    bound = delta_bound(settings.exports.base_model, settings.adapters.max_delta_ratio)
    serve_orders(Blender(run, bound), sys.stdin.buffer, sys.stdout.buffer)
