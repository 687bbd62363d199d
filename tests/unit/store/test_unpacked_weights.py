"""Packed weights are read as the formats' own libraries read them, whichever rows are asked for.

Where such a library is installed (compressed-tensors), it is the reference; elsewhere words are put together here, one
entry after the other in Python's integers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from amalgam.errors.internal import UnpackingFault
from amalgam.store.base_weights import BaseWeights
from amalgam.store.checkpoint_tensors import checkpoint_tensors
from amalgam.store.linear_modules import linear_modules
from amalgam.store.packings import packing_of
from amalgam.store.unpacked_weights import UnpackedWeight

MODULE = "model.layers.0.mlp.up_proj"
OUT, IN, GROUP = 32, 64, 16
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The i-th four bits of a word are those of this output of eight: AutoAWQ's, as its kernels read them."""
GOLDEN = Path(__file__).with_name("bitsandbytes_weights.safetensors")


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def written(folder: Path, parts: dict[str, Tensor], said: dict[str, Any] | None, kind: str = "llama") -> Path:
    """A checkpoint of one module in ``folder``."""
    folder.mkdir(exist_ok=True)
    tensors = {f"{MODULE}.{name}": part.contiguous() for name, part in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": kind} | ({} if said is None else {"quantization_config": said})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def unpacked(folder: Path, step: int = OUT, module: str = MODULE) -> Tensor:
    """All rows of the module, ``step`` at a time."""
    config = json.loads((folder / "config.json").read_text())
    tensors = checkpoint_tensors(folder) or {}
    packing = packing_of(config, linear_modules(folder, config, tensors)[module])
    content = (folder / "model.safetensors").read_bytes()
    raw = {name: content[part.span.start : part.span.end] for name, part in packing.parts.items()}
    weight = UnpackedWeight(packing, raw)
    return torch.cat([weight.rows(row, step) for row in range(0, packing.rows, step)])


def word(entries: list[int], bits: int) -> int:
    """One int32 with the first entry in its lowest bits."""
    found = sum(entry << (bits * place) for place, entry in enumerate(entries))
    return found - (1 << 32) if found >= 1 << 31 else found


def words(entries: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """[rows, n] of unsigned entries as [rows, n·bits/32] words."""
    places = order or tuple(range(32 // bits))
    rows = [
        [word([int(row[start + place]) for place in places], bits) for start in range(0, entries.shape[1], 32 // bits)]
        for row in entries
    ]
    return torch.tensor(rows, dtype=torch.int32)


def entries_zeros_scales(bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random [out, in], [out, groups] and [out, groups]."""
    generator = drawn(bits)
    entries = torch.randint(0, 1 << bits, (OUT, IN), generator=generator)
    zeros = torch.randint(0, 1 << bits, (OUT, IN // GROUP), generator=generator)
    scales = torch.rand((OUT, IN // GROUP), generator=generator) + 0.5
    return entries, zeros, scales.half()


@pytest.mark.parametrize("step", [1, 7, 8, OUT])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_with_zeros_of_its_own(bits: int, version: str, ordered: bool, step: int, tmp_path: Path) -> None:
    entries, zeros, scales = entries_zeros_scales(bits)
    index = torch.arange(IN) // GROUP
    parts = {
        "qweight": words(entries, bits).T,
        "scales": scales.T,
        "qzeros": words(((zeros - int(version == "gptq")) & ((1 << bits) - 1)).T, bits),
    }
    if ordered:
        index = index[torch.randperm(IN, generator=drawn(9))]
        parts["g_idx"] = index.to(torch.int32)
    said = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": False, "checkpoint_format": version}
    expected = (entries - zeros[:, index]) * scales.float()[:, index]
    torch.testing.assert_close(unpacked(written(tmp_path, parts, said), step), expected, rtol=0, atol=0)


def test_symmetric_gptq_has_its_zero_in_the_middle_whatever_is_stored_of_it(tmp_path: Path) -> None:
    entries, zeros, scales = entries_zeros_scales(4)
    parts = {"qweight": words(entries, 4).T, "scales": scales.T, "qzeros": words(zeros.T, 4)}
    said = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}
    expected = (entries - 8) * scales.float()[:, torch.arange(IN) // GROUP]
    torch.testing.assert_close(unpacked(written(tmp_path, parts, said)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("step", [1, 5, 8, OUT])
def test_awq_with_zeros_of_its_own(step: int, tmp_path: Path) -> None:
    entries, zeros, scales = entries_zeros_scales(4)
    parts = {
        "qweight": words(entries.T, 4, AWQ_ORDER),
        "scales": scales.T,
        "qzeros": words(zeros.T, 4, AWQ_ORDER),
    }
    said = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    index = torch.arange(IN) // GROUP
    expected = (entries - zeros[:, index]) * scales.float()[:, index]
    torch.testing.assert_close(unpacked(written(tmp_path, parts, said), step), expected, rtol=0, atol=0)


def compressed(form: str, parts: dict[str, Tensor], weights: dict[str, Any], folder: Path) -> tuple[Path, Tensor]:
    """A checkpoint of compressed-tensors, and what its library makes of it."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    expected = BaseCompressor.get_value_from_registry(form).decompress(dict(parts), scheme)["weight"]
    group = {"targets": ["Linear"], "weights": weights}
    said = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return written(folder, parts, said), expected.float()


@pytest.mark.parametrize("step", [1, 7, OUT])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["group", "channel"])
def test_words_of_compressed_tensors(bits: int, symmetric: bool, strategy: str, step: int, tmp_path: Path) -> None:
    entries, zeros, scales = entries_zeros_scales(bits)
    groups = IN // GROUP if strategy == "group" else 1
    middle = 1 << (bits - 1)
    parts = {
        "weight_packed": pack_to_int32((entries - middle).to(torch.int8), bits),
        "weight_scale": scales[:, :groups].float(),
        "weight_shape": torch.tensor([OUT, IN]),
    }
    if not symmetric:
        parts["weight_zero_point"] = pack_to_int32((zeros[:, :groups] - middle).to(torch.int8), bits, packed_dim=0)
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
    if strategy == "group":
        weights["group_size"] = GROUP
    folder, expected = compressed("pack-quantized", parts, weights, tmp_path)
    torch.testing.assert_close(unpacked(folder, step), expected, rtol=1e-6, atol=0)


def test_words_of_compressed_tensors_whose_inputs_are_ordered(tmp_path: Path) -> None:
    entries, _, scales = entries_zeros_scales(4)
    index = (torch.arange(IN) // GROUP)[torch.randperm(IN, generator=drawn(3))]
    parts = {
        "weight_packed": pack_to_int32((entries - 8).to(torch.int8), 4),
        "weight_scale": scales.float(),
        "weight_shape": torch.tensor([OUT, IN]),
        "weight_g_idx": index.to(torch.int32),
    }
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "actorder": "group",
    }  # fmt: skip
    folder, expected = compressed("pack-quantized", parts, weights, tmp_path)
    torch.testing.assert_close(unpacked(folder), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("step", [1, 7, OUT])
@pytest.mark.parametrize("scale", [(), (1,), (OUT, 1), (OUT, IN // GROUP), (4, 4)])
@pytest.mark.parametrize("form", ["int-quantized", "float-quantized"])
def test_eight_bits_with_scales_of_every_shape(form: str, scale: tuple[int, ...], step: int, tmp_path: Path) -> None:
    entries = torch.randint(-127, 128, (OUT, IN), generator=drawn(1))
    eight = torch.int8 if form == "int-quantized" else torch.float8_e4m3fn
    scales = torch.rand(scale, generator=drawn(2)) + 0.5
    weights: dict[str, Any] = {"num_bits": 8, "type": form.partition("-")[0], "symmetric": True}
    if scale == (4, 4):
        weights |= {"strategy": "block", "block_structure": [8, 16]}
        whole = scales.repeat_interleave(8, 0).repeat_interleave(16, 1)
    elif scale == (OUT, IN // GROUP):
        weights |= {"strategy": "group", "group_size": GROUP}
        whole = scales.repeat_interleave(GROUP, 1)
    else:
        weights["strategy"] = "tensor" if scale in ((), (1,)) else "channel"
        whole = scales.expand(OUT, IN)
    parts = {"weight": entries.to(eight), "weight_scale": scales}
    group = {"targets": ["Linear"], "weights": weights}
    said = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    expected = entries.to(eight).float() * whole
    torch.testing.assert_close(unpacked(written(tmp_path, parts, said), step), expected, rtol=0, atol=0)


def test_blocks_that_do_not_divide_a_weight_are_as_wide_as_the_config_says(tmp_path: Path) -> None:
    """As DeepSeek's and Qwen's FP8: the last blocks are narrower, and ``inv`` is said of a scale that is multiplied."""
    weight = torch.randn((OUT, IN), generator=drawn(4)).to(torch.float8_e4m3fn)
    scales = torch.rand((4, 3), generator=drawn(5)) + 0.5
    said = {"quant_method": "fp8", "weight_block_size": [10, 28], "activation_scheme": "dynamic"}
    whole = scales.repeat_interleave(10, 0)[:OUT].repeat_interleave(28, 1)[:, :IN]
    folder = written(tmp_path, {"weight": weight, "weight_scale_inv": scales}, said)
    torch.testing.assert_close(unpacked(folder, 7), weight.float() * whole, rtol=0, atol=0)


@pytest.mark.parametrize("zero", [(OUT, 1), (OUT, IN // GROUP)])
def test_eight_bits_with_zeros(zero: tuple[int, int], tmp_path: Path) -> None:
    entries = torch.randint(-128, 128, (OUT, IN), generator=drawn(1)).to(torch.int8)
    zeros = torch.randint(-128, 128, zero, generator=drawn(6)).to(torch.int8)
    parts = {"weight": entries, "weight_scale": torch.rand(zero, generator=drawn(2)) + 0.5, "weight_zero_point": zeros}
    weights: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "channel"}
    if zero[1] > 1:
        weights |= {"strategy": "group", "group_size": GROUP}
    folder, expected = compressed("int-quantized", parts, weights, tmp_path)
    torch.testing.assert_close(unpacked(folder), expected, rtol=1e-6, atol=0)


def fours(form: str) -> dict[str, Tensor]:
    """Random floats of four bits, as compressed-tensors stores them."""
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = table[torch.randint(0, 8, (OUT, IN), generator=drawn(7))]
    values *= torch.randint(0, 2, values.shape, generator=drawn(8)) * 2 - 1
    parts = {"weight_packed": pack_fp4_to_uint8(values)}
    if form.startswith("nvfp4"):
        parts["weight_scale"] = (torch.rand((OUT, IN // 16), generator=drawn(2)) * 100).to(torch.float8_e4m3fn)
        parts["weight_global_scale"] = torch.tensor([37.5])
    else:
        parts["weight_scale"] = torch.randint(110, 140, (OUT, IN // 32), generator=drawn(2)).to(torch.uint8)
    return parts


@pytest.mark.parametrize("form", ["nvfp4-pack-quantized", "mxfp4-pack-quantized"])
def test_floats_of_four_bits(form: str, tmp_path: Path) -> None:
    strategy, group = ("tensor_group", 16) if form.startswith("nvfp4") else ("group", 32)
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy, "group_size": group}
    folder, expected = compressed(form, fours(form), weights, tmp_path)
    # The library computes in bfloat16 here and there.
    torch.testing.assert_close(unpacked(folder, 7), expected, rtol=2**-7, atol=0)


@pytest.mark.parametrize("step", [1, 40, 3 * OUT])
def test_experts_of_one_parameter_are_as_transformers_reads_them(step: int, tmp_path: Path) -> None:
    stored = "model.layers.0.mlp.experts.gate_up_proj"
    blocks = torch.randint(0, 256, (3, OUT, IN // 32, 16), generator=drawn(1)).to(torch.uint8)
    scales = torch.randint(118, 130, (3, OUT, IN // 32), generator=drawn(2)).to(torch.uint8)
    folder = written(tmp_path, {"unused": torch.zeros(1)}, {"quant_method": "mxfp4"}, kind="gpt_oss")
    parts = {f"{stored}_blocks": blocks, f"{stored}_scales": scales}
    save_file(parts, folder / "model.safetensors", metadata={"format": "pt"})
    expected = convert_moe_packed_tensors(blocks, scales).float().transpose(1, 2)
    found = unpacked(folder, step, "model.layers.0.mlp.experts.1.gate_up_proj").view(3, OUT, IN)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weights = BaseWeights(folder)
    for expert in range(3):
        module = f"model.layers.0.mlp.experts.{expert}.gate_up_proj"
        torch.testing.assert_close(weights.of(module), expected[expert], rtol=0, atol=0)


def test_modelopts_floats_of_four_bits_are_the_same_with_a_second_scale_that_is_multiplied(tmp_path: Path) -> None:
    parts = fours("nvfp4-pack-quantized")
    folder = written(tmp_path / "one", parts, {"quant_method": "compressed-tensors"})
    other = {
        "weight": parts["weight_packed"],
        "weight_scale": parts["weight_scale"],
        "weight_scale_2": 1 / parts["weight_global_scale"][0],
        "input_scale": torch.tensor(1.0),
    }
    again = written(tmp_path / "two", other, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    torch.testing.assert_close(unpacked(again, 5), unpacked(folder), rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", ["nf4", "fp4", "nested_nf4", "int8"])
@pytest.mark.parametrize("step", [1, 3, OUT])
def test_what_bitsandbytes_packed_is_what_it_unpacks(form: str, step: int, tmp_path: Path) -> None:
    """Packed and unpacked by bitsandbytes 0.49.2 and kept in a file: [32, 64], blocks of 64 entries."""
    stored = load_file(GOLDEN)
    parts = {name.partition("/")[2]: part for name, part in stored.items() if name.startswith(f"{form}/")}
    expected = parts.pop("expected")
    folder = written(tmp_path, parts, {"quant_method": "bitsandbytes"})
    # The library's values are float32 for four bits, and float16 for eight.
    tolerance = 1e-6 if form != "int8" else 2**-9
    torch.testing.assert_close(unpacked(folder, step), expected.float(), rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"qweight": torch.zeros((6, OUT), dtype=torch.int32), "scales": torch.ones((4, OUT)),
          "qzeros": torch.zeros((4, 3 * OUT // 32), dtype=torch.int32)}, "2, 4 and 8 bits"),
        ({"qweight": torch.zeros((8, OUT), dtype=torch.int32), "scales": torch.ones((4, OUT)),
          "g_idx": torch.zeros(IN, dtype=torch.int32)}, "no zero points"),
        ({"weight": torch.zeros((OUT, IN), dtype=torch.int8)}, "no scales"),
        ({"weight": torch.zeros((OUT, IN), dtype=torch.int16), "weight_scale": torch.ones(())}, "not known"),
    ],
)  # fmt: skip
def test_what_cannot_be_unpacked_is_refused_by_name(parts: dict[str, Tensor], why: str, tmp_path: Path) -> None:
    folder = written(tmp_path, parts, {"quant_method": "gptq"})
    with pytest.raises(UnpackingFault, match=why) as caught:
        unpacked(folder)
    assert MODULE in str(caught.value)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    parts = {"weight": torch.zeros((OUT, IN), dtype=torch.int8), "weight_scale": torch.ones((OUT - 1, 1))}
    with pytest.raises(UnpackingFault, match="belong together"):
        unpacked(written(tmp_path, parts, {"quant_method": "compressed-tensors"}))


def test_a_conversion_reads_the_weight_of_a_quantised_module(tmp_path: Path) -> None:
    """As that of DoRA, which needs the norms of the base model's columns."""
    weight = torch.randn((OUT, IN), generator=drawn(4)).to(torch.float8_e4m3fn)
    folder = written(tmp_path, {"weight": weight, "weight_scale": torch.tensor(0.25)}, {"quant_method": "fp8"})
    torch.testing.assert_close(BaseWeights(folder).of(MODULE), weight.float() / 4, rtol=0, atol=0)
