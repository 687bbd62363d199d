"""Writes an adapter once more in the form that an engine takes up fastest: float32, with the scale inside ``lora_B``.

An engine that computes in float32 would convert the stored factors and multiply them by their scale between two steps
of its loop, while every stream waits; what this module writes it has only to copy. The numbers are those that the
engine would have got: bfloat16 and float16 widen exactly, and the product with the scale is rounded once in float32
either way.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from amalgam.store.file_rules import CONFIG_FILE, WEIGHTS_FILE
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.peft_tensors import PREFIX, sort_tensors
from amalgam.store.safetensors_header import TensorSpan, read_header
from amalgam.store.tensor_scan import read_fully

_CHUNK_BYTES: Final = 1 << 19
"""Read at a time; with its copy in float32 it stays in the second-level cache."""
_ALIGNMENT: Final = 8
"""Of the tensors' beginning, as the format's own writers have it."""
_FLOAT32: Final = np.dtype("<f4")

Float32s = NDArray[np.float32]


def staged_size(folder: Path) -> int:
    """Bytes that `write_staged` will take, within a header's length; at most twice those of the stored weights."""
    return 2 * (folder / WEIGHTS_FILE).stat().st_size


def write_staged(folder: Path, place: Path, pause: Callable[[], None] = lambda: None) -> None:
    """Write the checked PEFT adapter in ``folder`` to the new folder ``place``; memory stays at a few chunks.

    Tensors that are no factors, which a checked adapter has only as ignored copies of base weights, are left out.

    Args:
        folder: what is stored.
        place: made here.
        pause: called after every chunk, and may sleep.

    Raises:
        InvalidAdapter, InvalidSafetensors: the stored files are not what they were.
        OSError: a file cannot be read or written; ``place`` may then be there in part.
    """
    judged = read_peft_folder(folder, None, scan_values=False)
    # Without the base model at hand a copy of its weights reads as a fault; the stored adapter was checked against it.
    header = judged.header or judged.require()
    pairs = sort_tensors(read_header(folder / WEIGHTS_FILE), None).pairs
    entries = [
        (f"{PREFIX}{name}.{factor}.weight", span, module.scaling if factor == "lora_B" else 1.0)
        for name, module in sorted(header.modules.items())
        for factor, span in sorted(pairs[name].items())
    ]
    place.mkdir()
    (place / CONFIG_FILE).write_text(json.dumps(_without_scale(judged.config)))
    with (folder / WEIGHTS_FILE).open("rb", buffering=0) as source, (place / WEIGHTS_FILE).open("xb") as target:
        target.write(_header({name: span.shape for name, span, _ in entries}))
        for _, span, scale in entries:
            for values in _values(source, span):
                if scale != 1.0:
                    np.multiply(values, np.float32(scale), out=values)
                target.write(values.data)
                pause()


def _without_scale(config: Mapping[str, object]) -> dict[str, object]:
    """The same config for factors whose scale is 1: alpha is the rank, everywhere."""
    patterns = config.get("rank_pattern") or {}
    return dict(config) | {"lora_alpha": config["r"], "alpha_pattern": patterns, "use_rslora": False}


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The safetensors header of float32 tensors that follow each other in this order."""
    entries: dict[str, object] = {}
    start = 0
    for name, shape in shapes.items():
        end = start + int(np.prod(shape, dtype=np.int64)) * _FLOAT32.itemsize
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _values(source: BinaryIO, span: TensorSpan) -> Iterator[Float32s]:
    """The tensor's entries as float32, a chunk at a time; each chunk may be changed."""
    source.seek(span.start)
    for at in range(span.start, span.end, _CHUNK_BYTES):
        data = bytearray(min(_CHUNK_BYTES, span.end - at))
        read_fully(source, memoryview(data))
        yield _widened(data, span.dtype)


def _widened(data: bytearray, dtype: str) -> Float32s:
    if dtype == "F32":
        return np.frombuffer(data, dtype=_FLOAT32)
    if dtype == "F16":
        return np.frombuffer(data, dtype="<f2").astype(_FLOAT32)
    # A bfloat16 is the upper half of a float32.
    widened: Float32s = np.left_shift(np.frombuffer(data, dtype="<u2"), 16, dtype="<u4").view(_FLOAT32)
    return widened
