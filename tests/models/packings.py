"""Quantised checkpoints, packed by hand as AutoGPTQ, AutoAWQ, compressed-tensors and bitsandbytes write them.

Four bits, symmetric, groups of 32 inputs; or eight bits. Weights are rounded to the nearest step, so that a model
answers nearly as it did before.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
BITS = 4
_PER_WORD = 32 // BITS
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_MIDDLE = 1 << (BITS - 1)
_BYTE_STEPS = 127

Packing = Callable[[str, Tensor], dict[str, Tensor]]


def _steps(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Unsigned steps [out, in] and scales [out, groups] of a weight [out, in]."""
    rows, columns = weight.shape
    grouped = weight.float().view(rows, columns // GROUP, GROUP)
    scales = (grouped.abs().amax(-1) / (_MIDDLE - 1)).clamp(min=1e-8).half()
    steps = torch.round(grouped / scales.float().unsqueeze(-1)).clamp(-_MIDDLE, _MIDDLE - 1) + _MIDDLE
    return steps.view(rows, columns).to(torch.int64), scales


def _words(values: Tensor, order: tuple[int, ...] = tuple(range(_PER_WORD))) -> Tensor:
    """[n, m·8] of four bits each to int32 words [n, m]; the value ``order[i]`` of eight takes the i-th four bits."""
    eights = values.view(values.shape[0], -1, _PER_WORD)
    word = sum(eights[:, :, order[place]] << (BITS * place) for place in range(_PER_WORD))
    assert isinstance(word, Tensor)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def gptq(module: str, weight: Tensor) -> dict[str, Tensor]:
    """qweight [in/8, out], qzeros [groups, out/8] (one less than the zero), scales [groups, out], g_idx [in]."""
    steps, scales = _steps(weight)
    groups = scales.shape[1]
    zeros = torch.full((groups, weight.shape[0]), _MIDDLE - 1)
    return {
        f"{module}.qweight": _words(steps).T.contiguous(),
        f"{module}.qzeros": _words(zeros),
        f"{module}.scales": scales.T.contiguous(),
        f"{module}.g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }


def awq(module: str, weight: Tensor) -> dict[str, Tensor]:
    """qweight [in, out/8], qzeros [groups, out/8], scales [groups, out]; outputs of a word are interleaved."""
    steps, scales = _steps(weight)
    zeros = torch.full((scales.shape[1], weight.shape[0]), _MIDDLE)
    return {
        f"{module}.qweight": _words(steps.T.contiguous(), _AWQ_ORDER),
        f"{module}.qzeros": _words(zeros, _AWQ_ORDER),
        f"{module}.scales": scales.T.contiguous(),
    }


def compressed(module: str, weight: Tensor) -> dict[str, Tensor]:
    """weight_packed [out, in/8], weight_scale [out, groups], weight_shape [2]."""
    steps, scales = _steps(weight)
    return {
        f"{module}.weight_packed": _words(steps),
        f"{module}.weight_scale": scales,
        f"{module}.weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }


def int8(module: str, weight: Tensor) -> dict[str, Tensor]:
    """W8A8: weight int8 [out, in], weight_scale [out, 1]; activations are rounded by row while they are multiplied."""
    scales = (weight.float().abs().amax(1, keepdim=True) / _BYTE_STEPS).clamp(min=1e-8)
    steps = torch.round(weight.float() / scales).clamp(-_BYTE_STEPS, _BYTE_STEPS)
    return {f"{module}.weight": steps.to(torch.int8), f"{module}.weight_scale": scales}


def fp8(module: str, weight: Tensor) -> dict[str, Tensor]:
    """weight float8 e4m3 [out, in], weight_scale [] of the whole."""
    scale = (weight.float().abs().amax() / torch.finfo(torch.float8_e4m3fn).max).clamp(min=1e-8)
    return {f"{module}.weight": (weight.float() / scale).to(torch.float8_e4m3fn), f"{module}.weight_scale": scale}


def bitsandbytes(module: str, weight: Tensor) -> dict[str, Tensor]:
    """The layout alone, with values of no meaning: weight U8 [out·in/2, 1], and the state as JSON."""
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    return {
        f"{module}.weight": torch.zeros((weight.numel() // 2, 1), dtype=torch.uint8),
        f"{module}.weight.absmax": torch.zeros(weight.numel() // 64, dtype=torch.uint8),
        f"{module}.weight.quant_map": torch.zeros(16),
        f"{module}.weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }


CONFIGS: Mapping[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": BITS, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": BITS,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": GROUP,
                },
            }
        },
        "ignore": ["lm_head"],
    },
    "w8a8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
                "input_activations": {
                    "num_bits": 8,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "token",
                    "dynamic": True,
                },
            }
        },
        "ignore": ["lm_head"],
    },
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
PACKINGS: Mapping[str, Packing] = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": compressed,
    "w8a8": int8,
    "fp8": fp8,
    "bitsandbytes": bitsandbytes,
}


def rounded(method: str, weight: Tensor) -> Tensor:
    """What a weight [out, in] is once it has been packed, in float32."""
    if method == "bitsandbytes":
        return torch.zeros_like(weight, dtype=torch.float32)
    if method == "w8a8":
        packed = int8("", weight)
        return packed[".weight"].float() * packed[".weight_scale"]
    if method == "fp8":
        packed = fp8("", weight)
        return packed[".weight"].float() * packed[".weight_scale"]
    steps, scales = _steps(weight)
    return ((steps - _MIDDLE).view(*scales.shape, GROUP) * scales.float().unsqueeze(-1)).view(weight.shape)


def is_packed(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a checkpoint is a linear weight of a decoder layer."""
    return (".layers." in name or ".h." in name) and name.endswith(".weight") and tensor.ndim == 2


def quantise(folder: Path, method: str, *, is_transposed: bool = False) -> None:
    """Replace the linear weights of the decoder layers of the checkpoint in ``folder`` by packed ones.

    Args:
        folder: of the checkpoint.
        method: one of `PACKINGS`.
        is_transposed: the checkpoint has weights as [in, out], as GPT-2's; packed ones are alike for all.
    """
    path = folder / "model.safetensors"
    packed: dict[str, Tensor] = {}
    for name, tensor in load_file(path).items():
        if is_packed(name, tensor):
            packed |= PACKINGS[method](name.removesuffix(".weight"), tensor.T.contiguous() if is_transposed else tensor)
        else:
            packed[name] = tensor.contiguous()
    save_file(packed, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": CONFIGS[method], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
