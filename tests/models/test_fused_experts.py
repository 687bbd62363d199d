"""Adapters of experts that lie in one parameter, as PEFT writes them: read, merged and exported expert by expert."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from amalgam.cli.recipe_options import open_inputs
from amalgam.domain.expression import parse_expression
from amalgam.errors.exports import BaseNotExportable
from amalgam.merge.build import BuildOptions
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.base_model import base_spec
from amalgam.store.canonical_folder import make_canonical
from amalgam.store.peft_folder import PeftFolder, read_peft_folder
from amalgam.store.separated_folder import separate_staged
from amalgam.workers.exporter import describe_export
from tests.export_factory import export
from tests.golden import dense
from tests.merge_factory import make_recipe, merge_dense
from tests.models.test_families import EXPORTED, LATE, TOKENS
from tests.models.tiny_models import build, family_of, logits, write_adapter, write_model

FUSED = ("experts.gate_up_proj", "experts.down_proj")
IN_ONE_TENSOR = ("gpt_oss", "granitemoe")
ROUTER = re.compile(r"\.(mlp|block_sparse_moe)\.(gate|router)\.lora_A")
BY_EXPERT = ("mixtral", "qwen2_moe", "olmoe")
MORE_BY_EXPERT = [pytest.param(name, marks=LATE) for name in ("qwen3_moe", "phimoe", "deepseek_v3")]
ELEMENTWISE = 2e-5
"""Of the norm: an entry that float32 puts on the other side of a threshold is as small as the threshold."""
ROUNDING = 1e-6
"""Relative: factors are float32, and the definition multiplies in float64."""


def write_fused(
    family: str, folder: Path, *, seed: int, parameters: tuple[str, ...] = FUSED, attention: bool = True, **options: Any
) -> torch.nn.Module:
    """A random adapter of parameters in ``folder``, and PEFT's model with it."""
    torch.manual_seed(seed)
    targets = ["q_proj", "o_proj"] if attention else []
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": targets, "target_parameters": list(parameters)}
    adapted = get_peft_model(build(family), LoraConfig(**fields | options))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    evaluated: torch.nn.Module = adapted.eval()
    return evaluated


def definition(folder: Path, experts: int, depth: int, scale: float) -> dict[str, Tensor]:
    """Δ of a fused parameter, [experts, out, in] in float64, by the name of its block of experts.

    Args:
        depth: how many ``base_layer`` the factors lie below.
        scale: alpha / rank.
    """
    end = ".experts" + ".base_layer" * depth
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, down in tensors.items():
        block, _, factor = name.partition(end + ".lora_A")
        if factor == ".weight":
            up = tensors[f"{block}{end}.lora_B.weight"].double()
            rank = down.shape[0] // experts
            deltas = [scale * up[:, e::experts] @ down[e * rank : (e + 1) * rank].double() for e in range(experts)]
            found[block.removeprefix("base_model.model.") + ".experts"] = torch.stack(deltas)
    return found


def staged(folder: Path, base_folder: Path, store: Path, family: str) -> PeftFolder:
    """As an upload goes through the server: judged, and brought into its stored form."""
    base = base_spec(base_folder, family, 64)
    opened = AdapterStore.open(store)
    with opened.stage() as staging:
        for file in folder.glob("adapter_*"):
            staging.receive(file.name, [file.read_bytes()])
        separate_staged(staging, base)
        found = read_peft_folder(staging.folder, base)
        found.require(staging.findings)
        make_canonical(staging, found)
        path = opened.path(opened.publish(staging).digest)
    return read_peft_folder(path, None)


@pytest.mark.parametrize("family", BY_EXPERT)
def test_fused_parameters_are_stored_as_pairs_of_every_expert(family: str, tmp_path: Path) -> None:
    write_model(family, tmp_path / "base")
    write_fused(family, tmp_path / "a", seed=1)
    found = staged(tmp_path / "a", tmp_path / "base", tmp_path / "store", family)
    assert found.errors == ()
    modules = found.require().modules
    assert len(modules) == 2 * (2 + 4 * 3)
    assert {module.rank for module in modules.values()} == {4}
    assert {module.scaling for module in modules.values()} == {2.0}


@pytest.mark.parametrize("family", BY_EXPERT)
def test_pairs_of_experts_multiply_to_what_peft_adds(family: str, tmp_path: Path) -> None:
    write_model(family, tmp_path / "base")
    write_fused(family, tmp_path / "a", seed=1)
    path = str(tmp_path / "a")
    source = open_inputs(parse_expression(path, allow_paths=True), tmp_path / "base")[path]
    header = source.header
    halves = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    fused = {depth: definition(tmp_path / "a", 4, depth, 2.0) for depth in (0, 1)}
    compared = 0
    for block, deltas in fused[1].items():
        # Checkpoints of Mixtral have another name of the block than transformers.
        stored = block.replace(".mlp.", ".block_sparse_moe.") if family == "mixtral" else block
        for expert in range(4):
            rows = deltas.shape[1] // 2
            whole = (deltas[expert][:rows], deltas[expert][rows:], fused[0][block][expert])
            for name, expected in zip(halves, whole, strict=True):
                module = f"{stored}.{expert}.{name}"
                A, B = (factor.double() for factor in source.factors(module))
                delta = header.modules[module].scaling * B @ A
                assert (delta - expected).abs().max() <= ROUNDING * expected.abs().max()
                compared += 1
    assert compared == 2 * 4 * 3


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_a_merge_of_fused_adapters_is_that_of_each_experts_matrix(method: str, tmp_path: Path) -> None:
    """A method that looks at single entries looks at those of one expert's matrix, as it does at a module's."""
    write_model("olmoe", tmp_path / "base")
    for seed, name in enumerate("ab"):
        write_fused("olmoe", tmp_path / name, seed=seed, attention=False)
    weights = {str(tmp_path / "a"): 0.5, str(tmp_path / "b"): 0.25}
    more: dict[str, Any] = {"parameters": {"density": 0.5}, "space": "delta"} if method == "ties" else {}
    recipe = make_recipe(method, weights, rank=64, **more)
    merged = merge_dense(recipe, open_inputs(recipe, tmp_path / "base"))
    assert len(merged) == 2 * 4 * 3
    for depth, names in ((1, ("gate_proj", "up_proj")), (0, ("down_proj",))):
        fused = [definition(tmp_path / name, 4, depth, 2.0) for name in "ab"]
        for block in fused[0]:
            for expert, number in itertools.product(range(4), range(len(names))):
                deltas = [one[block][expert].chunk(len(names))[number] for one in fused]
                if method == "ties":
                    expected = dense.elect([dense.trim(x, 0.5) for x in deltas], list(weights.values()))
                else:
                    expected = 0.5 * deltas[0] + 0.25 * deltas[1]
                found = merged[f"{block}.{expert}.{names[number]}"].double()
                assert (found - expected).norm() <= ELEMENTWISE * expected.norm()


@pytest.mark.parametrize("family", [*BY_EXPERT, *IN_ONE_TENSOR, *MORE_BY_EXPERT])
def test_an_export_of_fused_adapters_answers_as_peft_merges_it(family: str, tmp_path: Path) -> None:
    write_model(family, tmp_path / "base")
    adapted = write_fused(family, tmp_path / "a", seed=1)
    _assert_exported_as_merged(family, tmp_path, logits(adapted.merge_and_unload(), TOKENS))  # type: ignore[operator]


@pytest.mark.parametrize("family", [*BY_EXPERT, *IN_ONE_TENSOR, *MORE_BY_EXPERT])
def test_what_peft_makes_of_all_linear_layers_is_exported_as_peft_merges_it(family: str, tmp_path: Path) -> None:
    """It names parameters by their last part alone, ``gate_up_proj``, and routers as ``gate.weight``."""
    write_model(family, tmp_path / "base")
    adapted = write_adapter(build(family), tmp_path / "a", "all-linear", seed=1)
    _assert_exported_as_merged(family, tmp_path, logits(adapted.merge_and_unload(), TOKENS))  # type: ignore[operator]
    found = staged(tmp_path / "a", tmp_path / "base", tmp_path / "store", family)
    assert found.errors == ()
    routers = [ROUTER.search(name) for name in load_file(tmp_path / "a" / "adapter_model.safetensors")]
    kept = [ROUTER.search(f"{module}.lora_A") for module in found.require().modules]
    assert sum(map(bool, kept)) == sum(map(bool, routers))


def _assert_exported_as_merged(family: str, tmp_path: Path, expected: Tensor) -> None:
    """Hold that base + the adapter in ``a`` says ``expected``."""
    assert (expected - logits(build(family), TOKENS)).abs().max() > 100 * EXPORTED
    path = str(tmp_path / "a")
    recipe = parse_expression(path, allow_paths=True)
    sources = open_inputs(recipe, tmp_path / "base")
    options = BuildOptions(max_rank=64)
    order = describe_export(recipe, sources, tmp_path / "base", options, dtype="base", max_shard_bytes=1 << 30)
    export(order, tmp_path / "exports" / "x")
    model = getattr(transformers, family_of(family).model).from_pretrained(tmp_path / "exports" / "x")
    torch.testing.assert_close(logits(model.eval(), TOKENS), expected, atol=EXPORTED, rtol=0)


@pytest.mark.parametrize("parameters", [("experts.down_proj",), ("experts.gate_up_proj",), ("gate.weight",)])
def test_one_parameter_alone_is_known_by_its_name(parameters: tuple[str, ...], tmp_path: Path) -> None:
    write_model("olmoe", tmp_path / "base")
    write_fused("olmoe", tmp_path / "a", seed=1, parameters=parameters, attention=False)
    found = staged(tmp_path / "a", tmp_path / "base", tmp_path / "store", "olmoe")
    assert found.errors == ()
    ends = {name.rpartition(".")[2] for name in found.require().modules}
    known = {"experts.down_proj": {"down_proj"}, "experts.gate_up_proj": {"gate_proj", "up_proj"}}
    assert ends == known.get(parameters[0], {"gate"})


def test_ranks_and_scales_of_parameters_by_pattern_are_those_of_their_pairs(tmp_path: Path) -> None:
    write_model("olmoe", tmp_path / "base")
    patterns: dict[str, Any] = {"rank_pattern": {r".*\.gate_up_proj": 8}, "alpha_pattern": {r".*\.gate_up_proj": 24}}
    write_fused("olmoe", tmp_path / "a", seed=1, use_rslora=True, **patterns)
    found = staged(tmp_path / "a", tmp_path / "base", tmp_path / "store", "olmoe")
    assert found.errors == ()
    rules = {(name.rpartition(".")[2], m.rank, m.scaling) for name, m in found.require().modules.items()}
    pair = {(name, 8, 24 / 8**0.5) for name in ("gate_proj", "up_proj")}
    assert rules == pair | {(name, 4, 4.0) for name in ("down_proj", "q_proj", "o_proj")}
    # What is stored is read by PEFT as well.
    stored = PeftModel.from_pretrained(build("olmoe"), tmp_path / "a")
    assert logits(stored.eval(), TOKENS).isfinite().all()


def test_factors_of_an_older_peft_are_the_same_adapter(tmp_path: Path) -> None:
    """It took [experts, out, in] for [experts, in, out], so that A and B have each other's sizes."""
    write_model("olmoe", tmp_path / "base")
    write_fused("olmoe", tmp_path / "a", seed=1, attention=False)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    turned = {}
    for name, down in tensors.items():
        if name.endswith("lora_A.weight"):
            other = name.replace("lora_A", "lora_B")
            rank = down.shape[0] // 4
            up = tensors[other].reshape(tensors[other].shape[0], rank, 4)
            turned[name] = up.permute(2, 1, 0).reshape(4 * rank, -1).contiguous()
            turned[other] = down.reshape(4, rank, -1).permute(2, 1, 0).reshape(-1, rank * 4).contiguous()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "adapter_config.json").write_bytes((tmp_path / "a" / "adapter_config.json").read_bytes())
    save_file(turned, tmp_path / "b" / "adapter_model.safetensors", metadata={"format": "pt"})
    paths = [str(tmp_path / name) for name in "ab"]
    sources = open_inputs(parse_expression(" + ".join(paths), allow_paths=True), tmp_path / "base")
    today, older = (sources[path] for path in paths)
    assert today.header.modules == older.header.modules
    for module in today.header.modules:
        for one, other in zip(today.factors(module), older.factors(module), strict=True):
            assert torch.equal(one, other)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    write_model("olmoe", tmp_path / "base")
    write_fused("olmoe", tmp_path / "a", seed=1)
    base = base_spec(tmp_path / "base", "olmoe", 64)
    alone = read_peft_folder(tmp_path / "a", None).errors
    assert [error.code for error in alone] == ["unsupported_modules"]
    assert "--base" in alone[0].message
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    for changes, code in (
        ({"r": 8}, "shape_mismatch"),
        ({"target_parameters": ["experts.down_proj"]}, "unsupported_modules"),
        ({"target_parameters": "experts"}, "unsupported_modules"),
        ({"use_dora": True}, "unsupported_dora"),
    ):
        path.write_text(json.dumps(config | changes))
        assert code in {error.code for error in read_peft_folder(tmp_path / "a", base).errors}, changes
    write_model("llama", tmp_path / "dense")
    path.write_text(json.dumps(config))
    refused = read_peft_folder(tmp_path / "a", base_spec(tmp_path / "dense", "llama", 64)).errors
    assert {error.code for error in refused} == {"unsupported_modules"}


def pack_experts(folder: Path) -> PreTrainedModel:
    """Put random experts in MXFP4, as gpt-oss is published, in the place of those in ``folder``; what they are."""
    model = build("gpt_oss")
    stored = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("gate_up_proj", "down_proj"):
                experts, inputs, outputs = parameter.shape
                shape = (experts, outputs, inputs // 32, 16)
                blocks = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
                scales = torch.randint(119, 123, shape[:3], generator=generator).to(torch.uint8)
                stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
                del stored[name]
                parameter.copy_(convert_moe_packed_tensors(blocks, scales))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    return model


@pytest.mark.parametrize("fused", [False, True])
def test_packed_experts_are_exported_unpacked_or_as_they_are(fused: bool, tmp_path: Path) -> None:
    base_folder = tmp_path / "base"
    write_model("gpt_oss", base_folder)
    plain = base_spec(base_folder, "gpt_oss", 64)
    model = pack_experts(base_folder)
    assert base_spec(base_folder, "gpt_oss", 64).linear_shapes == plain.linear_shapes
    write_fused("gpt_oss", tmp_path / "a", seed=1, parameters=FUSED if fused else ())
    path = str(tmp_path / "a")
    recipe = parse_expression(path, allow_paths=True)
    sources = open_inputs(recipe, base_folder)

    def exported(name: str, dequantize: bool) -> Path:
        order = describe_export(
            recipe, sources, base_folder, BuildOptions(max_rank=64), dtype="base", max_shard_bytes=1 << 30,
            dequantize=dequantize,
        )  # fmt: skip
        export(order, tmp_path / "exports" / name)
        return tmp_path / "exports" / name

    expected = logits(PeftModel.from_pretrained(model, tmp_path / "a").merge_and_unload().eval(), TOKENS)
    found = transformers.AutoModelForCausalLM.from_pretrained(exported("plain", True), dtype=torch.float32)
    torch.testing.assert_close(logits(found.eval(), TOKENS), expected, atol=EXPORTED, rtol=0)
    if fused:
        with pytest.raises(BaseNotExportable, match="--dequantize"):
            exported("packed", False)
        return
    packed = load_file(exported("packed", False) / "model.safetensors")
    assert {name for name in packed if name.endswith("_blocks")}


@pytest.mark.parametrize("family", IN_ONE_TENSOR)
def test_experts_of_one_tensor_are_not_served(family: str, tmp_path: Path) -> None:
    write_model(family, tmp_path / "base")
    write_fused(family, tmp_path / "a", seed=1)
    base = base_spec(tmp_path / "base", family, 64)
    store = AdapterStore.open(tmp_path / "store")
    with store.stage() as staging:
        for file in (tmp_path / "a").glob("adapter_*"):
            staging.receive(file.name, [file.read_bytes()])
        separate_staged(staging, base)
        errors = read_peft_folder(staging.folder, base).errors
    assert {error.code for error in errors} == {"unsupported_modules"}
    assert "exported offline and not served" in errors[0].message
