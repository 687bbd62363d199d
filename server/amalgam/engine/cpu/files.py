"""Adapters' files, mapped, and where in them each module's factors lie.

A file of several hundred tensors takes longer to look up than to read. Adapters that were trained alike have the same
header, byte for byte, so what follows from it and from the model's names is kept, and used for the next one.
"""

import json
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from amalgam.engine.cpu.compiler import HALF_BITS
from amalgam.engine.cpu.sources import StoredBits

KEPT_LAYOUTS: Final = 32
_LENGTH_BYTES: Final = 8
_KINDS: Final[dict[str, np.dtype[Any]]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.uint32),
}
"""Entries are read as these: the bits of bfloat16 and of float32, and float16 as it is."""


@dataclass(frozen=True, slots=True)
class Naming:
    """How a model calls what an adapter's file holds.

    Attributes:
        modules: Last parts of the names of modules that can be adapted.
        mapping: Says how names are mapped; the same for two that map alike.
        parse: Of a tensor's name: the model's name of its module, the file's name of it, and whether the tensor is A.
            It may refuse a name, by ValueError.
    """

    modules: frozenset[str]
    mapping: str
    parse: Callable[[str], tuple[str, str, bool]] = field(compare=False)


class Place(NamedTuple):
    """Where a matrix lies in its file: the first byte of it, and what its entries are."""

    kind: np.dtype[Any]
    start: int
    rows: int
    columns: int

    def read(self, file: mmap.mmap) -> StoredBits:
        """The matrix, without a copy where its type allows it."""
        entries = np.frombuffer(file, self.kind, self.rows * self.columns, self.start)
        matrix = entries.reshape(self.rows, self.columns)
        if self.kind == np.float16:
            return StoredBits(matrix.astype(np.float32).view(np.uint32), 0)
        return StoredBits(matrix, HALF_BITS if self.kind == np.uint16 else 0)


class ModulePlaces(NamedTuple):
    """Where one module's factors lie.

    Attributes:
        name: The model's. stored: The file's, which rank and alpha patterns refer to.
        a: [rank, in]. b: [width, rank].
    """

    name: str
    stored: str
    a: Place
    b: Place


Layout = tuple[ModulePlaces, ...]


class Layouts:
    """Layouts of the files that were met last; may be asked by several threads."""

    def __init__(self) -> None:
        self._of = lru_cache(KEPT_LAYOUTS)(layout_of)

    def map(self, path: str, naming: Naming) -> tuple[mmap.mmap, Layout] | None:
        """A file, and what is where in it; None where something in it is not a factor of a module in ``naming``.

        Pages are read when they are needed, and written pages would be the process's own.
        """
        with open(path, "rb") as opened:
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        stop = _LENGTH_BYTES + int.from_bytes(file[:_LENGTH_BYTES], "little")
        layout = self._of(file[_LENGTH_BYTES:stop], naming)
        return None if layout is None else (file, layout)


def layout_of(header: bytes, naming: Naming) -> Layout | None:
    """The layout by a checked safetensors header; None where it has more than pairs of factors of ``naming``.

    Also None for types other than bfloat16, float16 and float32, for experts, whose rules are others, and for tensors
    that do not begin at a multiple of their entries' size.
    """
    found: dict[tuple[str, str], dict[bool, Place]] = {}
    for name, entry in json.loads(header).items():
        if name == "__metadata__":
            continue
        place = _place(entry, _LENGTH_BYTES + len(header))
        if place is None or not name.endswith((".lora_A.weight", ".lora_B.weight")) or ".experts" in name:
            return None
        module, stored, is_a = naming.parse(name)
        if module.rpartition(".")[2] not in naming.modules:
            return None
        found.setdefault((module, stored), {})[is_a] = place
    if any(len(pair) < 2 for pair in found.values()):
        return None
    return tuple(ModulePlaces(*names, pair[True], pair[False]) for names, pair in found.items())


def _place(entry: Any, data: int) -> Place | None:
    """Args: entry: Of the header. data: Where in the file its tensors begin."""
    kind, shape, start = _KINDS.get(entry["dtype"]), entry["shape"], data + entry["data_offsets"][0]
    if kind is None or len(shape) != 2 or start % kind.itemsize:
        return None
    return Place(kind, start, *shape)
