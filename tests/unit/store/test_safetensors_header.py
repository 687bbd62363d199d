"""The header reader believes nothing; what it accepts, the reference reader reads the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from amalgam.errors.adapters import InvalidSafetensors
from amalgam.store import safetensors_header
from amalgam.store.safetensors_header import TensorSpan, read_header
from tests.adapter_factory import encode_safetensors


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_spans_are_where_the_bytes_are(tmp_path: Path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([7, 8], np.float32)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_safetensors(tensors, "float32"))
    spans = read_header(path)
    assert list(spans) == ["b", "a"]
    raw = path.read_bytes()
    for name, values in tensors.items():
        span = spans[name]
        assert span.shape == values.shape
        assert span.dtype == "F32"
        assert raw[span.start : span.end] == values.tobytes()


def test_order_of_keys_need_not_be_order_of_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"second": entry(8, 12, [1]), "first": entry(0, 8, [2])}, b"\0" * 12)
    assert read_header(path)["second"] == TensorSpan("F32", (1,), path.stat().st_size - 4, path.stat().st_size)


def test_scalars_empty_tensors_and_narrow_types_are_fine(tmp_path: Path) -> None:
    header = {
        "scalar": entry(0, 4, []),
        "empty": entry(4, 4, [0, 5]),
        "nibbles": entry(4, 5, [2], "F4"),
        "__metadata__": {"format": "pt"},
    }
    assert set(read_header(write(tmp_path / "x", header, b"\0" * 5))) == {"scalar", "empty", "nibbles"}


GOOD = entry(0, 8, [2])
REFUSED = {
    "overlap": ({"a": GOOD, "b": entry(4, 12, [2])}, b"\0" * 12),
    "gap": ({"a": GOOD, "b": entry(12, 16, [1])}, b"\0" * 16),
    "gap at the beginning": ({"a": entry(4, 8, [1])}, b"\0" * 8),
    "bytes behind the last tensor": ({"a": GOOD}, b"\0" * 9),
    "bytes missing": ({"a": GOOD}, b"\0" * 7),
    "longer than shape and dtype": ({"a": entry(0, 8, [1])}, b"\0" * 8),
    "shorter than shape and dtype": ({"a": entry(0, 8, [3])}, b"\0" * 8),
    "half a byte": ({"a": entry(0, 1, [1], "F4")}, b"\0"),
    "unknown dtype": ({"a": entry(0, 8, [2], "F33")}, b"\0" * 8),
    "unhashable dtype": ({"a": {**GOOD, "dtype": ["F32"]}}, b"\0" * 8),
    "negative size": ({"a": entry(0, 8, [-1, -2])}, b"\0" * 8),
    "size that is a truth value": ({"a": entry(0, 4, [True])}, b"\0" * 4),
    "size that is a float": ({"a": entry(0, 8, [2.0])}, b"\0" * 8),  # type: ignore[list-item]
    "sizes that overflow in 64 bits": ({"a": entry(0, 0, [1 << 62, 4])}, b""),
    "offsets reversed": ({"a": entry(8, 0, [2])}, b"\0" * 8),
    "three offsets": ({"a": {**GOOD, "data_offsets": [0, 4, 8]}}, b"\0" * 8),
    "field missing": ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8),
    "field too many": ({"a": {**GOOD, "more": 1}}, b"\0" * 8),
    "entry that is a list": ({"a": [1]}, b""),
    "metadata that is not text": ({"a": GOOD, "__metadata__": {"format": 1}}, b"\0" * 8),
    "metadata that is a list": ({"a": GOOD, "__metadata__": []}, b"\0" * 8),
    "metadata that is an empty text": ({"a": GOOD, "__metadata__": ""}, b"\0" * 8),
    "list at the top": (b"[]", b""),
    "no JSON": (b"{nope", b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "blank before the brace": (b' {"a":' + json.dumps(GOOD).encode() + b"}", b"\0" * 8),
    "nested deeper than a stack": (b'{"a":' * 200_000, b""),
    "number of a million digits": (b'{"a":' + b"9" * 1_000_000 + b"}", b""),
    "NaN": (b'{"a": NaN}', b""),
    "duplicate tensor": (b'{"a":' + json.dumps(GOOD).encode() + b',"a":' + json.dumps(GOOD).encode() + b"}", b"\0" * 8),
    "duplicate field": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    header, data = REFUSED[case]
    with pytest.raises(InvalidSafetensors) as caught:
        read_header(write(tmp_path / "x.safetensors", header, data))
    assert caught.value.code == "invalid_header"
    assert caught.value.status == 422
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("length", [9, 1 << 20, (1 << 64) - 1])
def test_a_length_beyond_the_file_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidSafetensors, match="at most 2 are possible"):
        read_header(write(tmp_path / "x", b"{}", length=length))


@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"\0" * 7, "zeros"), (b"{}x", "only 3 bytes")])
def test_a_file_too_short_for_a_length_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InvalidSafetensors, match=told):
        read_header(tmp_path / "x")


def test_a_giant_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    limit = safetensors_header.MAX_HEADER_BYTES
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write((limit + 1).to_bytes(8, "little"))
        file.truncate(limit * 4)
    with pytest.raises(InvalidSafetensors, match=f"at most {limit} are possible"):
        read_header(path)


@given(data=st.data())
def test_what_is_accepted_the_reference_reader_accepts(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Flip a byte of a small valid file: either it is refused, or the format's own library reads the same from it."""
    path = tmp_path_factory.mktemp("flipped") / "x.safetensors"
    raw = bytearray(encode_safetensors({"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32)}, "float16"))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        spans = read_header(path)
    except InvalidSafetensors:
        return
    try:
        with safe_open(path, "numpy") as reference:
            assert set(reference.keys()) == set(spans)
            for name, span in spans.items():
                assert tuple(reference.get_slice(name).get_shape()) == span.shape
                assert reference.get_slice(name).get_dtype() == span.dtype
    except SafetensorError as error:
        pytest.fail(f"accepted what the reference refuses: {error}")
