"""Factors are views of the file, whatever its writer's habits."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import open_tensors
from tests.adapter_factory import write_lora


def check_factors(folder: Path) -> None:
    header = read_peft_folder(folder, None).require()
    opened = open_tensors(folder, header, digest="d")
    expected = load_file(folder / "adapter_model.safetensors")
    for module in header.modules:
        for factor, found in zip(("lora_A", "lora_B"), opened.factors(module), strict=True):
            assert torch.equal(found, expected[f"base_model.model.{module}.{factor}.weight"])


def test_factors_are_those_that_the_format_says(tmp_path: Path) -> None:
    for number, dtype in enumerate(("bfloat16", "float16", "float32")):
        folder = write_lora(tmp_path / dtype, rank=3, seed=number, dtype=dtype)  # type: ignore[arg-type]
        check_factors(folder)


def test_factors_that_begin_at_an_odd_byte_are_read_too(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "odd", rank=2, seed=1, dtype="float32")
    weights = folder / "adapter_model.safetensors"
    data = weights.read_bytes()
    length = int.from_bytes(data[:8], "little")
    # One blank more behind the header's JSON, and no tensor is aligned any more.
    weights.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    header = read_peft_folder(folder, None).require()
    opened = open_tensors(folder, header, digest="d")
    module = next(iter(header.modules))
    a, _ = opened.factors(module)
    values = np.frombuffer(weights.read_bytes()[8 + length + 1 :], dtype="<f4", count=a.numel())
    assert np.array_equal(a.numpy().ravel(), values)


def test_the_file_stays_as_it_is(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "kept", rank=2, seed=1)
    header = read_peft_folder(folder, None).require()
    before = (folder / "adapter_model.safetensors").read_bytes()
    a, _ = open_tensors(folder, header, digest="d").factors(next(iter(header.modules)))
    a.zero_()
    assert (folder / "adapter_model.safetensors").read_bytes() == before
