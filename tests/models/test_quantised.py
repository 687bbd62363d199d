"""Quantised checkpoints of a tiny model: adapters of the plain one fit them, and exports are plain where asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from amalgam.domain.expression import parse_expression
from amalgam.errors import AmalgamError
from amalgam.errors.exports import BaseNotExportable
from amalgam.merge.build import BuildOptions
from amalgam.store.base_model import base_spec
from amalgam.store.checkpoint_layout import lay_out
from amalgam.store.peft_folder import read_peft_folder
from amalgam.workers.exporter import describe_export
from tests.export_factory import export
from tests.models.packings import PACKINGS, is_packed, quantise, rounded
from tests.models.test_families import EXPORTED, TOKENS, adapter, opened, write_pair
from tests.models.tiny_models import logits, write_adapter, write_model


@pytest.mark.parametrize("method", PACKINGS)
def test_an_adapter_of_the_plain_model_fits_the_quantised_one(method: str, tmp_path: Path) -> None:
    write_model("llama", tmp_path / "base")
    plain = base_spec(tmp_path / "base", "llama", 64)
    quantise(tmp_path / "base", method)
    packed = base_spec(tmp_path / "base", "llama", 64)
    assert packed.linear_shapes == plain.linear_shapes
    adapter("llama", tmp_path / "adapter")
    assert read_peft_folder(tmp_path / "adapter", packed).findings == ()


@pytest.mark.parametrize("method", PACKINGS)
def test_quantised_weights_are_not_exported(method: str, tmp_path: Path) -> None:
    """Nothing is added to words, nor to bytes that have a scale beside them."""
    write_model("llama", tmp_path / "base")
    quantise(tmp_path / "base", method)
    base = base_spec(tmp_path / "base", "llama", 64)
    adapter("llama", tmp_path / "a")
    path = str(tmp_path / "a")
    recipe = parse_expression(path, allow_paths=True)
    options, sources = BuildOptions(max_rank=64), {path: opened(tmp_path / "a", base)}

    def exported() -> None:
        order = describe_export(recipe, sources, tmp_path / "base", options, dtype="base", max_shard_bytes=1 << 30)
        export(order, tmp_path / "exports" / "sum")

    with pytest.raises(AmalgamError, match="quantised"):
        exported()


@pytest.mark.parametrize(
    ("family", "method", "targets"),
    [
        *(("llama", method, ("q_proj", "down_proj")) for method in PACKINGS),
        ("gpt2", "gptq", ("c_attn", "c_proj")),
        ("gpt2", "compressed-tensors", ("c_attn", "c_proj")),
    ],
)
def test_quantised_weights_are_exported_unpacked_where_that_is_asked_for(
    family: str, method: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    """GPT-2's own weights are stored as [in, out], and packed ones as everybody's."""
    model, is_transposed = write_model(family, tmp_path / "base"), family == "gpt2"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_packed(name, weight):
                weight.copy_(rounded(method, weight.T).T if is_transposed else rounded(method, weight))
    quantise(tmp_path / "base", method, is_transposed=is_transposed)
    (tmp_path / "base" / "quantize_config.json").write_text("{}")
    base = base_spec(tmp_path / "base", family, 64)
    peft = write_adapter(model, tmp_path / "a", list(targets), seed=1, fan_in_fan_out=is_transposed)
    path = str(tmp_path / "a")
    order = describe_export(
        parse_expression(path, allow_paths=True), {path: opened(tmp_path / "a", base)}, tmp_path / "base",
        BuildOptions(max_rank=64), dtype="float32", max_shard_bytes=1 << 30, dequantize=True,
    )  # fmt: skip
    record = export(order, tmp_path / "exports" / "sum")
    folder = tmp_path / "exports" / "sum"
    assert record.dequantized
    assert not (folder / "quantize_config.json").exists()
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert plain.dtype == torch.float32
    assert not hasattr(plain.config, "quantization_config")
    torch.testing.assert_close(logits(plain, TOKENS), logits(peft, TOKENS), atol=EXPORTED, rtol=0)


def test_a_plain_module_of_a_quantised_model_is_exported_and_the_others_stay_packed(tmp_path: Path) -> None:
    """As gpt-oss, whose experts are packed and whose attention is not."""
    write_model("llama", tmp_path / "base")
    quantise(tmp_path / "base", "gptq")
    base = base_spec(tmp_path / "base", "llama", 64)
    write_pair(tmp_path / "a", "lm_head", base.linear_shapes["lm_head"])
    path = str(tmp_path / "a")

    def exported(name: str, dtype: Any) -> None:
        order = describe_export(
            parse_expression(path, allow_paths=True), {path: opened(tmp_path / "a", base)}, tmp_path / "base",
            BuildOptions(max_rank=64), dtype=dtype, max_shard_bytes=1 << 30,
        )  # fmt: skip
        export(order, tmp_path / "exports" / name)

    exported("sum", "base")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "exports/sum"))
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert (before.keys(), changed) == (after.keys(), ["lm_head.weight"])
    assert json.loads((tmp_path / "exports" / "sum" / "config.json").read_text())["quantization_config"]
    with pytest.raises(AmalgamError, match="cannot be cast to float16"):
        exported("cast", "float16")


def test_an_export_that_would_leave_packed_tensors_in_a_plain_model_is_refused(tmp_path: Path) -> None:
    write_model("llama", tmp_path / "base")
    quantise(tmp_path / "base", "fp8")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    stored["model.layers.0.mlp.experts.gate_up_proj_blocks"] = torch.zeros((2, 4, 2, 16), dtype=torch.uint8)
    save_file(stored, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseNotExportable, match="gate_up_proj_blocks"):
        lay_out(tmp_path / "base", {}, dtype="base", max_shard_bytes=1 << 30, dequantize=True)
