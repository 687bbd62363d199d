"""LoRA of diffusion models: kohya's and diffusers' spellings, convolutions, and files that load again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from amalgam.__main__ import app
from amalgam.cli.recipe_options import open_inputs
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.errors.merging import NonFinite, UnsupportedFormat
from amalgam.store.kohya_files import open_kohya
from tests.adapter_factory import write_lora

EXACT = 1e-6
"""Of Δ, relative, in float32."""

ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
SHAPES = {
    f"lora_unet_{ATTENTION}": ((12,), 8),
    "lora_unet_down_blocks_0_resnets_0_conv1": ((6, 3, 3), 10),
    "lora_unet_up_blocks_1_attentions_0_proj_in": ((12, 1, 1), 8),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": ((16,), 16),
}


def write(
    path: Any,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float | None = 2.0,
    modules: Any = SHAPES,
    dtype: torch.dtype = torch.float32,
) -> Any:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inner, outer) in modules.items():
        tail = (1, 1) if len(inner) == 3 else ()
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *inner, generator=generator).to(dtype)
        tensors[f"{name}.lora_up.weight"] = torch.randn(outer, rank, *tail, generator=generator).to(dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def by_definition(path: Any) -> Any:
    """Δ of every module as kohya's readers form it, in float64, from the file alone."""
    tensors = {name: tensor.double() for name, tensor in load_file(path).items()}
    found = {}
    for name in tensors:
        module, _, end = name.partition(".")
        if end == "lora_down.weight":
            down, up = tensors[name], tensors[f"{module}.lora_up.weight"]
            scale = float(tensors.get(f"{module}.alpha", torch.tensor(float(down.shape[0])))) / down.shape[0]
            if down.dim() == 4:
                up, down_flat = up.flatten(1), down.flatten(1)
                found[module] = scale * (up @ down_flat).reshape(up.shape[0], *down.shape[1:])
            else:
                found[module] = scale * up @ down
    return found


def opened(path: Any) -> Any:
    return open_inputs(Recipe(inputs=(RecipeInput(adapter=str(path)),)))[str(path)]


def delta(source: Any, module: Any) -> Any:
    A, B = source.factors(module)
    return source.header.modules[module].scaling * (B.double() @ A.double())


def distance(found: Any, expected: Any) -> Any:
    return float((found - expected).norm() / expected.norm())


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


@pytest.mark.parametrize("alpha", [2.0, None])
def test_factors_are_the_definition(alpha: float | None, tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.safetensors", alpha=alpha))
    expected = by_definition(tmp_path / "a.safetensors")
    assert set(source.header.modules) == set(expected) == set(SHAPES)
    for name, one in expected.items():
        assert distance(delta(source, name), one.flatten(1)) < EXACT, name


def test_a_merge_loads_again_with_its_convolutions(tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", seed=1)
    b = write(tmp_path / "b.safetensors", seed=2, rank=2, alpha=1.0)
    out = tmp_path / "made" / "ab.safetensors"
    done = run("build", f"{a} + 0.5*{b}", "-o", out, "--dtype", "float32")
    assert done.exit_code == 0, done.output
    one, other, merged = by_definition(a), by_definition(b), by_definition(out)
    assert {name: tuple(found.shape) for name, found in merged.items()} == {
        name: (outer, *inner) for name, (inner, outer) in SHAPES.items()
    }
    source = opened(out)
    for name in SHAPES:
        expected = one[name] + 0.5 * other[name]
        assert distance(merged[name], expected) < EXACT, name
        assert distance(delta(source, name), expected.flatten(1)) < EXACT, name
    stored = load_file(out)
    assert stored["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"].shape[1:] == (6, 3, 3)
    assert stored["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"].shape[2:] == (1, 1)
    assert run("report", out.with_suffix(".lineage.json"), "-o", tmp_path / "page.html").exit_code == 0
    # A folder holds a file of its own name, whichever way it was asked for.
    for more in ((), ("--format", "kohya")):
        folder = tmp_path / f"folder{len(more)}"
        assert run("build", a, "-o", folder, *more).exit_code == 0
        assert (folder / f"{folder.name}.safetensors").is_file()
        assert run("build", a, "-o", folder, *more).exit_code == 2, "it would be replaced"


DIFFUSERS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@pytest.mark.parametrize(("module", "down", "up"), [
    (f"{DIFFUSERS}.to_q", "lora_A.weight", "lora_B.weight"),
    (f"{DIFFUSERS}.to_q", "lora.down.weight", "lora.up.weight"),
    (f"{DIFFUSERS}.processor", "to_q_lora.down.weight", "to_q_lora.up.weight"),
    ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
     "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
])  # fmt: skip
def test_diffusers_spellings_are_the_same_modules(module: Any, down: str, up: str, tmp_path: Path) -> None:
    tensors = {f"{module}.{down}": torch.randn(4, 12), f"{module}.{up}": torch.randn(8, 4)}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    source = opened(tmp_path)
    (name,) = source.header.modules
    assert name in SHAPES
    expected = tensors[f"{module}.{up}"].double() @ tensors[f"{module}.{down}"].double()
    assert distance(delta(source, name), expected) < EXACT


def test_the_scales_that_diffusers_writes_beside_the_tensors_count(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for module, rank in (("unet.a.to_q", 4), ("unet.a.to_k", 2), ("text_encoder_2.b", 4), ("text_encoder.b", 4)):
        tensors |= {f"{module}.lora_A.weight": torch.ones(rank, 8), f"{module}.lora_B.weight": torch.ones(8, rank)}
    rules = {"unet.r": 4, "unet.lora_alpha": 8, "unet.rank_pattern": {"a.to_k": 2}, "unet.alpha_pattern": {"to_k": 3},
             "text_encoder_2.lora_alpha": 6, "text_encoder_2.use_rslora": True}  # fmt: skip
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(rules)})
    scales = {name: module.scaling for name, module in opened(path).header.modules.items()}
    assert scales == {"lora_unet_a_to_q": 2, "lora_unet_a_to_k": 1.5, "lora_te2_b": 3, "lora_te1_b": 1}
    for broken in (
        "[",
        "[]",
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": 1e999}',
        '{"unet.lora_alpha": 1, "unet.alpha_pattern": 3}',
    ):
        save_file(tensors, path, metadata={"lora_adapter_metadata": broken})
        with pytest.raises(UnsupportedFormat, match="metadata"):
            open_kohya("x", path)


NAME = f"lora_unet_{ATTENTION}"
PAIR = {f"{NAME}.lora_down.weight": torch.ones(2, 4), f"{NAME}.lora_up.weight": torch.ones(4, 2)}


@pytest.mark.parametrize("more", [
    {f"{NAME}.lora_mid.weight": torch.ones(2, 2, 3, 3)},
    {f"{NAME}.dora_scale": torch.ones(4)},
    {f"{NAME}.hada_w1_a": torch.ones(4, 2)},
    {f"{NAME}.alpha": torch.ones(3)},
    {f"{NAME}.lora_up.weight": torch.ones(4, 3)},
    {f"{NAME}.lora_up.weight": torch.ones(4, 2, 3, 3)},
    {f"{NAME}.lora_up.weight": torch.ones(4, 2, dtype=torch.float64)},
    {"lora_unet_b.lora_down.weight": torch.ones(2, 4)},
    {f"{DIFFUSERS}.to_q.lora_A.weight": torch.ones(2, 4), f"{DIFFUSERS}.to_q.lora_B.weight": torch.ones(4, 2)},
    {"vae.x.lora_A.weight": torch.ones(2, 4)},
])  # fmt: skip
def test_what_no_two_factors_say_is_refused(more: Any, tmp_path: Path) -> None:
    save_file(PAIR | more, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedFormat):
        open_kohya("x", tmp_path / "x.safetensors")


def test_other_files_and_mixtures_are_refused_with_a_next_step(tmp_path: Path) -> None:
    save_file(PAIR | {f"{NAME}.lora_up.weight": torch.full((4, 2), torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(NonFinite):
        open_kohya("x", tmp_path / "nan.safetensors")
    a = write(tmp_path / "a.safetensors")
    small: dict[str, Any] = {"layers": 1, "hidden": 12, "heads_kv_dim": 8, "intermediate": 16}
    llm = write_lora(tmp_path / "llm", **small)
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    other = write(tmp_path / "other.safetensors", modules=SHAPES | {conv: ((9, 2, 3), 10)})
    for arguments, code in (
        (("build", llm / "adapter_model.safetensors", "-o", tmp_path / "x"), "invalid_value"),
        (("build", a, "-o", tmp_path / "x", "--format", "peft"), "unsupported_target"),
        (("build", a, "-o", tmp_path / "x.gguf", "--base", llm), "unsupported_target"),
        (("build", a, "-o", tmp_path / "x.gguf", "--format", "kohya"), "invalid_value"),
        (("build", llm, "-o", tmp_path / "x.safetensors"), "unsupported_target"),
        (("build", f"passthrough({a}, {llm})", "-o", tmp_path / "x"), "unsupported_target"),
        (("build", f"{a} + {other}", "-o", tmp_path / "x"), "unsupported_target"),
        (("build", tmp_path, "-o", tmp_path / "x"), "invalid_value"),
    ):
        done = run(*arguments)
        assert (done.exit_code, done.stderr.partition(":")[0]) == (2, code), done.output
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x")]
