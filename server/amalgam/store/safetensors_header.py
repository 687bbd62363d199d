"""Reads the header of a safetensors file and believes nothing in it: no library sees the file before this check.

The format: eight bytes of header length (little endian), the header as a JSON object, then the tensors' bytes.
"""

import json
import math
from pathlib import Path
from typing import Any, Final, NamedTuple

from amalgam.errors.adapters import InvalidSafetensors
from amalgam.errors.internal import HeaderFault
from amalgam.store.mistaken_files import BEGINNING_BYTES, mistaken

MAX_HEADER_BYTES: Final = 8 << 20
"""It is the longest header that is parsed; a model of a hundred thousand tensors needs about this much."""

_PREFIX_BYTES: Final = 8
_MAX_DIMENSIONS: Final = 16
_MAX_SIZE: Final = 1 << 48
"""No dimension is larger; this keeps products of a few dimensions small integers."""

DTYPE_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""It is the width of one entry by the format's own names."""


class TensorSpan(NamedTuple):
    """Where one tensor lies in its file."""

    dtype: str
    """It is a key of `DTYPE_BITS`."""
    shape: tuple[int, ...]
    start: int
    """It is the offset of its first byte from the beginning of the file."""
    end: int
    """It is the offset behind its last byte."""
    file: str = ""
    """It is the name of its file, where there may be several."""


def read_header(path: Path) -> dict[str, TensorSpan]:
    """Read and check the header of the safetensors file ``path``, in the header's own order.

    Accepted only if the header is at most `MAX_HEADER_BYTES` and lies inside the file, is JSON without duplicate keys,
    and its tensors, sorted by offset, cover the rest of the file without gap or overlap, each as long as its shape and
    dtype say.

    Raises:
        InvalidSafetensors: any of this does not hold.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size < _PREFIX_BYTES:
                raise HeaderFault(f"the file has only {size} bytes")
            length = int.from_bytes(file.read(_PREFIX_BYTES), "little")
            limit = min(MAX_HEADER_BYTES, size - _PREFIX_BYTES)
            if length > limit:
                raise HeaderFault(f"its header claims {length} bytes, at most {limit} are possible")
            text = file.read(length)
        entries = _parse(text)
        spans = {name: _span(name, entry, _PREFIX_BYTES + length) for name, entry in entries.items()}
        _check_cover(spans, _PREFIX_BYTES + length, size)
    except HeaderFault as refused:
        with path.open("rb") as file:
            instead = mistaken(file.read(BEGINNING_BYTES))
        raise InvalidSafetensors(path.name, str(refused), instead) from None
    return spans


def _parse(text: bytes) -> dict[str, Any]:
    """The header's tensors; the free-form metadata beside them is checked and left out."""
    if not text.startswith(b"{"):
        raise HeaderFault("it does not begin with '{'")
    try:
        # The decoded text is checked for duplicate keys and for the constants that JSON does not have.
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise HeaderFault("it is not JSON") from error
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _is_text_by_name(metadata):
        raise HeaderFault("its metadata is not text by name")
    return dict(header)


def _is_text_by_name(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HeaderFault("a key occurs twice")
    return found


def _no_constant(constant: str) -> float:
    raise HeaderFault(f"{constant} is not JSON")


def _span(name: str, entry: Any, data_start: int) -> TensorSpan:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderFault(f"{_shown(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderFault(f"{_shown(name)} has an unknown dtype")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise HeaderFault(f"{_shown(name)} has an impossible shape")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderFault(f"{_shown(name)} has impossible offsets")
    start, end = offsets
    if math.prod(shape) * DTYPE_BITS[dtype] != 8 * (end - start):
        raise HeaderFault(f"{_shown(name)} is {end - start} bytes long, which is not what its shape and dtype need")
    return TensorSpan(dtype, tuple(shape), data_start + start, data_start + end)


def _are_sizes(values: Any) -> bool:
    # A bool is an int to Python, and not a size.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)


def _check_cover(spans: dict[str, TensorSpan], data_start: int, size: int) -> None:
    reached = data_start
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].end)):
        if span.start != reached:
            problem = "overlaps the tensor before it" if span.start < reached else "leaves a gap before it"
            raise HeaderFault(f"{_shown(name)} {problem}")
        reached = span.end
    if reached != size:
        raise HeaderFault(f"its tensors end at byte {reached} of {size}")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 128 else name[:128] + "…")
