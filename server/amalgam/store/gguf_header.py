"""Reads the header of a GGUF file and believes nothing in it: sizes are bounded before anything is allocated.

The format, little-endian: ``GGUF``, version, counts of tensors and of fields; the fields, each a name, a type and a
value; the tensors, each a name, dimensions (the fastest first), a type and an offset; then, aligned, their bytes.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from amalgam.errors.formats import InvalidGguf
from amalgam.errors.internal import HeaderFault

MAX_HEADER_BYTES: Final = 8 << 20
"""It is the longest header that is parsed. A model's holds its vocabulary and may be longer; an adapter's does not."""

BLOCKS: Final = {0: (1, 4), 1: (1, 2), 8: (32, 34), 30: (1, 2)}
"""By tensor type that an adapter may have (float32, float16, Q8_0, bfloat16), it has the entries and bytes of one
block."""

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_VERSIONS: Final = (2, 3)
_MAX_DIMENSIONS: Final = 4
_MAX_SIZE: Final = 1 << 40
_ALIGNMENT: Final = "general.alignment"
_DEFAULT_ALIGNMENT: Final = 32

Value = int | float | bool | str


class GgufTensor(NamedTuple):
    """Where one tensor lies in its file."""

    type: int
    """It is a key of `BLOCKS`."""
    shape: tuple[int, ...]
    """The slowest dimension is first, as in safetensors."""
    start: int
    """It is the offset of its first byte from the beginning of the file."""
    end: int
    """It is the offset behind its last byte."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself; the values of arrays are passed over."""

    fields: dict[str, Value]
    arrays: frozenset[str]
    """It names the fields that are arrays."""
    tensors: dict[str, GgufTensor]

    def text(self, name: str) -> str:
        """The field of that name where it is a text; else an empty one."""
        value = self.fields.get(name, "")
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float:
        """The field of that name where it is a finite number; else 0."""
        value = self.fields.get(name, 0)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of the file ``path``.

    Raises:
        InvalidGguf: it is no GGUF file, its header is cut off or longer than `MAX_HEADER_BYTES`, or a tensor does not
            lie inside the file, or has a type that adapters do not have.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        text = file.read(MAX_HEADER_BYTES)
    try:
        return _Parser(text).header(size)
    except HeaderFault as refused:
        raise InvalidGguf(path.name, str(refused)) from None
    except struct.error:
        raise InvalidGguf(path.name, "its header is cut off, or too long for an adapter") from None
    except UnicodeDecodeError:
        raise InvalidGguf(path.name, "a name in it is not UTF-8") from None


class _Parser:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def header(self, size: int) -> GgufHeader:
        if self._data[:4] != b"GGUF":
            raise HeaderFault("it does not begin with 'GGUF'")
        self._at = 4
        if self._int("<I") not in _VERSIONS:
            raise HeaderFault("its version is none of 2 and 3")
        tensor_count, field_count = self._int("<Q"), self._int("<Q")
        fields: dict[str, Value] = {}
        arrays = set()
        for _ in range(field_count):
            name, kind = self._text(), self._int("<I")
            if kind == _ARRAY:
                self._skip_array()
                arrays.add(name)
            else:
                fields[name] = self._value(kind)
        found = [self._tensor() for _ in range(tensor_count)]
        alignment = fields.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise HeaderFault(f"{_ALIGNMENT} is not a small number")
        start = self._at + -self._at % alignment
        tensors = {name: tensor._replace(start=start + tensor.start, end=start + tensor.end) for name, tensor in found}
        if len(tensors) != len(found):
            raise HeaderFault("a tensor's name occurs twice")
        if any(tensor.end > size for tensor in tensors.values()):
            raise HeaderFault("a tensor reaches beyond the end of the file")
        return GgufHeader(fields, frozenset(arrays), tensors)

    def _tensor(self) -> tuple[str, GgufTensor]:
        name = self._text()
        count = self._int("<I")
        if not 0 < count <= _MAX_DIMENSIONS:
            raise HeaderFault("a tensor has an impossible number of dimensions")
        shape = tuple(self._int("<Q") for _ in range(count))[::-1]
        kind, offset = self._int("<I"), self._int("<Q")
        if kind not in BLOCKS:
            raise HeaderFault(f"{name[:128]!r} is of type {kind}; adapters are float32, float16, bfloat16 or Q8_0")
        entries, size = BLOCKS[kind]
        if max(*shape, offset) > _MAX_SIZE or shape[-1] % entries:
            raise HeaderFault(f"{name[:128]!r} has an impossible shape")
        return name, GgufTensor(kind, shape, offset, offset + math.prod(shape) // entries * size)

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._text()
        return self._number(kind)

    def _number(self, kind: int) -> int | float | bool:
        if kind not in _SCALARS:
            raise HeaderFault("a field has an unknown type")
        (value,) = self._unpack(_SCALARS[kind])
        assert isinstance(value, int | float)
        return value

    def _skip_array(self) -> None:
        kind, count = self._int("<I"), self._int("<Q")
        if kind == _STRING:
            for _ in range(count):
                self._text()
        elif kind in _SCALARS:
            self._take(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise HeaderFault("a field is an array of an unknown type")

    def _text(self) -> str:
        return self._take(self._int("<Q")).decode()

    def _int(self, form: str) -> int:
        (value,) = self._unpack(form)
        assert isinstance(value, int)
        return value

    def _unpack(self, form: str) -> tuple[object, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise struct.error
        self._at += count
        return taken
