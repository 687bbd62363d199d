"""Reasons to refuse an adapter that lie in its values and its files, each with a folder that really has the fault."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from amalgam.domain.adapter import BaseModelSpec
from amalgam.store.peft_folder import read_peft_folder
from tests.unit.store.peft_faults import PREFIX, Q0, base, only, reconfigure, rewrite
from tests.unit.store.tiny_base import HIDDEN, fitting_adapter

__all__ = ["base"]  # a fixture


class TestValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_one_value_that_is_not_finite(self, value: float, dtype: str, base: BaseModelSpec, tmp_path: Path) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            tensors[f"{PREFIX}{Q0}.lora_B.weight"][HIDDEN - 1, 3] = value

        folder = rewrite(fitting_adapter(tmp_path), change, dtype)
        found = read_peft_folder(folder, base)
        only(found, "non_finite")
        assert [finding.module for finding in found.findings] == [Q0]
        assert read_peft_folder(folder, base, scan_values=False).findings == ()

    @pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
    def test_no_effect_where_every_module_has_a_zero_factor(
        self, factor: str, base: BaseModelSpec, tmp_path: Path
    ) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in tensors:
                if factor in name:
                    tensors[name] *= -0.0

        only(read_peft_folder(rewrite(fitting_adapter(tmp_path), change), base), "no_effect")

    def test_one_module_with_effect_is_enough(self, base: BaseModelSpec, tmp_path: Path) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in tensors:
                if Q0 not in name and "lora_B" in name:
                    tensors[name] *= 0

        assert read_peft_folder(rewrite(fitting_adapter(tmp_path), change), base).findings == ()

    def test_no_effect_where_the_scale_is_zero(self, base: BaseModelSpec, tmp_path: Path) -> None:
        only(read_peft_folder(reconfigure(fitting_adapter(tmp_path), lora_alpha=0), base), "no_effect")

    @pytest.mark.parametrize("scan_values", [True, False])
    def test_no_effect_without_factors(self, scan_values: bool, base: BaseModelSpec, tmp_path: Path) -> None:
        folder = rewrite(fitting_adapter(tmp_path), dict.clear)
        only(read_peft_folder(folder, base, scan_values=scan_values), "no_effect")

    def test_stored_types_that_are_not_served(self, base: BaseModelSpec, tmp_path: Path) -> None:
        path = fitting_adapter(tmp_path, modules=("q_proj",)) / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" '))
        only(read_peft_folder(tmp_path, base), "unsupported_dtype")


class TestFiles:
    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_missing(self, name: str, base: BaseModelSpec, tmp_path: Path) -> None:
        (fitting_adapter(tmp_path) / name).unlink()
        only(read_peft_folder(tmp_path, base), "missing_file")

    @pytest.mark.parametrize(
        "name", ["adapter_model.bin", "optimizer.pt", "X.PKL", "run.py", "m.so", "checkpoint-1/optimizer.pt"]
    )
    def test_what_nobody_reads_is_named_and_left(self, name: str, base: BaseModelSpec, tmp_path: Path) -> None:
        path = fitting_adapter(tmp_path) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps([1]))
        found = read_peft_folder(tmp_path, base)
        only(found, "file_ignored")
        assert found.errors == ()
        assert name.split("/")[0] in found.findings[0].message

    @pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model-00001-of-00002.bin", "Adapter_Model.PT"])
    def test_pickled_weights_in_place_of_safetensors(self, name: str, base: BaseModelSpec, tmp_path: Path) -> None:
        (fitting_adapter(tmp_path) / "adapter_model.safetensors").rename(tmp_path / name)
        found = read_peft_folder(tmp_path, base)
        assert [finding.code for finding in found.errors] == ["unsafe_format"]
        assert "safe_serialization=True" in found.errors[0].message

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_pickles_under_the_name_of_a_text_that_is_kept(
        self, protocol: int, base: BaseModelSpec, tmp_path: Path
    ) -> None:
        (fitting_adapter(tmp_path) / "README.md").write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
        only(read_peft_folder(tmp_path, base), "unsafe_format")

    @pytest.mark.parametrize("content", [pickle.dumps([1], protocol=4), b"PK\x03\x04" + b"\0" * 99])
    def test_a_pickle_called_safetensors(self, content: bytes, base: BaseModelSpec, tmp_path: Path) -> None:
        (fitting_adapter(tmp_path) / "adapter_model.safetensors").write_bytes(content)
        only(read_peft_folder(tmp_path, base), "unsafe_format")

    def test_a_header_whose_length_looks_like_a_pickle(self, base: BaseModelSpec, tmp_path: Path) -> None:
        """Padded to 0x..0280 bytes, the file begins like a pickle of protocol 2, and is still an adapter."""
        path = fitting_adapter(tmp_path) / "adapter_model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        padded = length + (0x0280 - length) % 0x10000
        path.write_bytes(
            padded.to_bytes(8, "little") + raw[8 : 8 + length] + b" " * (padded - length) + raw[8 + length :]
        )
        assert path.read_bytes()[:2] == b"\x80\x02"
        assert read_peft_folder(tmp_path, base).findings == ()

    def test_a_broken_header(self, base: BaseModelSpec, tmp_path: Path) -> None:
        path = fitting_adapter(tmp_path) / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-2])
        only(read_peft_folder(tmp_path, base), "invalid_header")
