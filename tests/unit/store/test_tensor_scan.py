"""The scan of bits says the same as arithmetic on values."""

from pathlib import Path

import numpy as np
import pytest

from amalgam.store import tensor_scan
from amalgam.store.safetensors_header import TensorSpan
from amalgam.store.tensor_scan import TensorScan, scan_tensors

CHUNK = tensor_scan.CHUNK_BYTES


def scan(path: Path, values: np.ndarray, dtype: str, offset: int = 0) -> TensorScan:
    raw = values.tobytes()
    path.write_bytes(b"\xff" * offset + raw + b"\xff" * 8)
    span = TensorSpan(dtype, values.shape, offset, offset + len(raw))
    return scan_tensors(path, {"x": span})["x"]


def as_bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


ENCODE = {"F32": lambda v: v.astype("<f4"), "F16": lambda v: v.astype("<f2"), "BF16": as_bf16}


@pytest.mark.parametrize("dtype", ENCODE)
@pytest.mark.parametrize(
    ("values", "finite", "zero"),
    [
        ([0.0, -0.0, 0.0], True, True),
        ([0.0, 2.0**-14, 0.0], True, False),
        ([65280.0, -65280.0], True, False),
        ([1.0, np.inf], False, False),
        ([-np.inf, 0.0], False, False),
        ([0.0, np.nan], False, False),
        ([], True, True),
    ],
)
def test_judgement(dtype: str, values: list[float], finite: bool, zero: bool, tmp_path: Path) -> None:
    assert scan(tmp_path / "x", ENCODE[dtype](np.array(values)), dtype)[:2] == (finite, zero)


@pytest.mark.parametrize("dtype", ENCODE)
@pytest.mark.parametrize(("values", "largest"), [([], 0.0), ([-0.0], 0.0), ([2.0**-14, -48.0, 3.0], 48.0)])
def test_the_largest_entry(dtype: str, values: list[float], largest: float, tmp_path: Path) -> None:
    assert scan(tmp_path / "x", ENCODE[dtype](np.array(values)), dtype).largest == largest


@pytest.mark.parametrize(("dtype", "bits"), [("F32", "<u4"), ("F16", "<u2"), ("BF16", "<u2")])
def test_the_smallest_subnormal_is_not_zero(dtype: str, bits: str, tmp_path: Path) -> None:
    assert not scan(tmp_path / "x", np.array([0, 1, 0], bits), dtype).zero


def test_every_half_precision_pattern(tmp_path: Path) -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    with np.errstate(invalid="ignore"):
        expected = {
            "F16": np.isfinite(patterns.view("<f2")),
            "BF16": np.isfinite((patterns.astype("<u4") << 16).view("<f4")),
        }
    for dtype, finite in expected.items():
        path = tmp_path / dtype
        path.write_bytes(patterns.tobytes())
        spans = {int(p): TensorSpan(dtype, (1,), 2 * int(p), 2 * int(p) + 2) for p in patterns[::7]}
        found = scan_tensors(path, spans)
        assert [found[p].finite for p in spans] == finite[::7].tolist()
        assert [p for p in spans if found[p].zero] == [p for p in (0, 0x8000) if p in spans]


@pytest.mark.parametrize("position", [0, CHUNK // 4 - 1, CHUNK // 4, CHUNK // 2 + 12])
def test_one_bad_value_in_any_chunk_is_found(position: int, tmp_path: Path) -> None:
    values = np.zeros(CHUNK // 2 + 13, "<f4")
    values[position] = np.nan
    assert scan(tmp_path / "x", values, "F32", offset=3) == (False, False, np.inf)


def test_neighbours_do_not_count(tmp_path: Path) -> None:
    """The bytes around the tensor are NaN patterns; an odd offset is not aligned to any type."""
    assert scan(tmp_path / "x", np.ones(5, "<f4"), "F32", offset=3) == (True, False, 1.0)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0" * 10)
    with pytest.raises(OSError, match="ended before"):
        scan_tensors(tmp_path / "x", {"x": TensorSpan("F32", (4,), 0, 16)})
