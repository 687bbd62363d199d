"""Other kinds of adapter as factors: equal to the deltas PEFT computes, module by module."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from amalgam.__main__ import app as cli
from amalgam.cli.recipe_options import open_inputs
from amalgam.errors.adapters import BaseModelUnreadable, InvalidAdapter
from amalgam.errors.merging import NonFinite, UnsupportedFormat
from amalgam.merge.dora import convert_dora
from amalgam.merge.formats import convert
from amalgam.store.base_weights import BaseWeights
from amalgam.store.tensor_files import WEIGHTS, read_all
from tests.golden.test_peft import tiny_llama
from tests.merge_factory import make_recipe

peft = pytest.importorskip("peft")

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
CONFIGS = {
    "adalora": {"init_r": 6, "target_r": 4, "lora_alpha": 10, "total_step": 10, "tinit": 1, "tfinal": 1},
    "loha": {"r": 3, "alpha": 7},
    "lokr": {"r": 2, "alpha": 5, "decompose_both": True},
    "lokr_full": {"r": 64, "alpha": 5},
}
KINDS = {"adalora": "AdaLoraConfig", "loha": "LoHaConfig", "lokr": "LoKrConfig", "lokr_full": "LoKrConfig"}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder and PEFT's own deltas by kind."""
    root, found = tmp_path_factory.mktemp("kinds"), {}
    for name, options in CONFIGS.items():
        config = getattr(peft, KINDS[name])(target_modules=TARGETS, **options)
        model = peft.get_peft_model(tiny_llama(), config)
        generator = torch.Generator().manual_seed(3)
        for key, parameter in model.named_parameters():
            if any(part in key for part in ("lora_", "hada_", "lokr_")) and parameter.is_floating_point():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        model.save_pretrained(root / name)
        loaded = peft.PeftModel.from_pretrained(tiny_llama(), root / name)
        deltas = {
            key.removeprefix("base_model.model."): module.get_delta_weight("default").double().detach()
            for key, module in loaded.named_modules()
            if hasattr(module, "get_delta_weight")
        }
        found[name] = (root / name, deltas)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_factors_are_pefts_delta(adapters: Any, name: Any) -> None:
    folder, deltas = adapters[name]
    source = convert("x", *read_all(folder))
    assert set(source.header.modules) == set(deltas)
    for module, delta in deltas.items():
        a, b = source.factors(module)
        found = source.header.modules[module].scaling * (b.double() @ a.double())
        assert float((found - delta).norm() / delta.norm()) < 1e-6, module


def test_the_command_line_merges_kinds(adapters: Any, tmp_path: Path) -> None:
    from amalgam.cli.merge import app

    expression = f"{adapters['loha'][0]} + 0.5*{adapters['adalora'][0]}"
    done = CliRunner().invoke(app, ["build", expression, "-o", str(tmp_path / "out"), "--dtype", "float32"])
    assert done.exit_code == 0, done.output


def test_what_no_factors_express_is_refused(adapters: Any) -> None:
    folder, _ = adapters["loha"]
    config, tensors, digest = read_all(folder)
    for wrong in ({"peft_type": "IA3"}, {"peft_type": "BOFT"}, {}):
        with pytest.raises(UnsupportedFormat):
            convert("x", wrong, tensors, digest)
    with pytest.raises(UnsupportedFormat, match="no place"):
        convert("x", config, {**tensors, "base_model.model.m.lora_A.weight": torch.ones(2, 2)}, digest)
    with pytest.raises(UnsupportedFormat, match="lacks"):
        convert("x", config, {next(iter(tensors)): next(iter(tensors.values()))}, digest)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig"])
def test_patterns_of_rank_and_alpha_count_in_every_kind_that_has_them(kind: str, tmp_path: Path) -> None:
    options = {"r": 3, "alpha": 7, "rank_pattern": {"q_proj": 2, r".*layers\.1\.mlp\.up_proj": 4}}
    config = getattr(peft, kind)(
        target_modules=TARGETS, alpha_pattern={"v_proj": 5, "layers.0.mlp.up_proj": 9}, **options
    )
    model = peft.get_peft_model(tiny_llama(), config)
    generator = torch.Generator().manual_seed(8)
    for key, parameter in model.named_parameters():
        if "hada_" in key or "lokr_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(tmp_path)
    source = convert("x", *read_all(tmp_path))
    scales = {round(module.scaling, 6) for module in source.header.modules.values()}
    assert len(scales) > 2
    for key, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            name = key.removeprefix("base_model.model.")
            a, b = source.factors(name)
            delta = module.get_delta_weight("default").double().detach()
            found = source.header.modules[name].scaling * (b.double() @ a.double())
            assert float((found - delta).norm() / delta.norm()) < 1e-6, name


def test_lora_ga_subtracts_its_start_as_pissa_does(tmp_path: Path) -> None:
    """It takes s·B₀·A₀ out of the base weights, so the adapter alone is no difference to the base as it was."""
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(4)
    start = {}
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            start[key] = parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "trained" / "initial")
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = start[key] + 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "trained")
    path = tmp_path / "trained" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "lora_ga"}))
    recipe = make_recipe("cat", {str(tmp_path / "trained"): 1.0})
    (found,) = open_inputs(recipe).values()
    now = {key: parameter.data.double() for key, parameter in model.named_parameters()}
    for name, module in found.header.modules.items():
        a, b = found.factors(name)
        keys = [f"base_model.model.{name}.lora_{factor}.default.weight" for factor in "AB"]
        expected = 5 / 3 * (now[keys[1]] @ now[keys[0]] - start[keys[1]].double() @ start[keys[0]].double())
        assert float((module.scaling * (b.double() @ a.double()) - expected).norm() / expected.norm()) < 1e-6
    shutil.rmtree(tmp_path / "trained" / "initial")
    with pytest.raises(InvalidAdapter) as refused:
        open_inputs(recipe)
    assert refused.value.code == "unsupported_init"


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_less_its_start_is_what_peft_converts_it_to(init: str, tmp_path: Path, base: Any) -> None:
    """PiSSA and OLoRA take their start out of the base weights; PEFT writes the difference at twice the rank."""
    options = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS, "init_lora_weights": init}
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**options))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    generator = torch.Generator().manual_seed(4)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)
    model.peft_config["default"].init_lora_weights = init
    with pytest.warns(UserWarning, match="init_lora_weights|initial|convert"):
        model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    model.save_pretrained(tmp_path / "trained")
    recipe = make_recipe("cat", {str(tmp_path / "trained"): 1.0})
    with pytest.raises(InvalidAdapter) as refused:
        open_inputs(recipe)
    assert {finding.code for finding in refused.value.findings} == {"unsupported_init"}
    (tmp_path / "start").rename(tmp_path / "trained" / "initial")
    (found,) = open_inputs(recipe).values()
    (expected,) = open_inputs(make_recipe("cat", {str(tmp_path / "plain"): 1.0})).values()
    assert set(found.header.modules) == set(expected.header.modules) != set()
    for name, module in expected.header.modules.items():
        (a, b), (c, d) = found.factors(name), expected.factors(name)
        assert module.rank == 6
        delta = module.scaling * (d.double() @ c.double())
        error = found.header.modules[name].scaling * (b.double() @ a.double()) - delta
        assert float(error.norm() / delta.norm()) < 1e-6
    write_all(tmp_path / "trained" / "initial", drop="lora_B")
    with pytest.raises(UnsupportedFormat, match="initial"):
        open_inputs(recipe)


def write_all(folder: Any, drop: Any) -> None:
    _, tensors, _ = read_all(folder)
    save_file({key: value for key, value in tensors.items() if drop not in key}, folder / WEIGHTS)


def test_vera_is_pefts_delta_with_the_base_at_hand(tmp_path: Path, base: Any) -> None:
    model = peft.get_peft_model(tiny_llama(), peft.VeraConfig(r=5, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(5)
    for key, parameter in model.named_parameters():
        if "vera_lambda" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "vera")
    recipe = make_recipe("cat", {str(tmp_path / "vera"): 1.0})
    with pytest.raises(UnsupportedFormat, match="--base"):
        open_inputs(recipe)
    (found,) = open_inputs(recipe, base).values()
    deltas = {
        key.removeprefix("base_model.model."): module.get_delta_weight("default").double().detach()
        for key, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(found.header.modules) == set(deltas)
    for name, delta in deltas.items():
        a, b = found.factors(name)
        assert float((b.double() @ a.double() - delta).norm() / delta.norm()) < 1e-6
    config, tensors, digest = read_all(tmp_path / "vera")
    unsaved = {key: value for key, value in tensors.items() if "lambda" in key}
    with pytest.raises(UnsupportedFormat, match="save_projection"):
        convert("x", config, unsaved, digest, {})
    with pytest.raises(UnsupportedFormat, match="no such module"):
        convert("x", config, tensors, digest, {})


def test_dora_is_what_peft_adds_cut_to_a_rank(tmp_path: Path, base: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "use_dora": True}
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**options))
    generator = torch.Generator().manual_seed(6)
    for key, parameter in model.named_parameters():
        if "lora_magnitude" in key:
            parameter.data = parameter.data * (1 + 0.2 * torch.rand(parameter.shape, generator=generator))
        elif "lora_" in key:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "dora")
    recipe = make_recipe("cat", {str(tmp_path / "dora"): 1.0})
    with pytest.raises(InvalidAdapter, match="--base"):
        open_inputs(recipe)
    (whole,) = open_inputs(recipe, base, dora_rank=64).values()
    assert "holds 1.0000 of the energy" in " ".join(capsys.readouterr().err.split())
    cut, share = convert_dora("x", read_all(tmp_path / "dora"), lambda name: 6 / 4, BaseWeights(base).of, 8)
    (short,) = open_inputs(recipe, base, dora_rank=8).values()
    assert short.header.rank == 8
    exported = CliRunner().invoke(
        cli, ["export", str(tmp_path / "dora"), "--base", str(base), "-o", str(tmp_path / "whole")]
    )
    assert exported.exit_code == 0, exported.output
    before = dict(tiny_llama().named_parameters())
    after = dict(model.merge_and_unload().named_parameters())
    assert len(whole.header.modules) == sum(name.split(".")[-2] in TARGETS for name in before)
    kept = total = 0.0
    for name, module in whole.header.modules.items():
        delta = (after[f"{name}.weight"] - before[f"{name}.weight"]).double().detach()
        a, b = whole.factors(name)
        assert module.rank == min(64, *delta.shape)
        assert float((b.double() @ a.double() - delta).norm() / delta.norm()) < 1e-5, name
        a, b = cut.factors(name)
        best = torch.linalg.svdvals(delta)[8:].norm()
        assert float((b.double() @ a.double() - delta).norm()) <= 1.05 * float(best), name
        kept, total = kept + float((b.double() @ a.double()).square().sum()), total + float(delta.square().sum())
    assert 0.5 < share < 0.99
    written = LlamaForCausalLM.from_pretrained(tmp_path / "whole")
    for name, parameter in written.named_parameters():
        assert torch.allclose(parameter, after[name], rtol=0, atol=2e-6), name
    assert share == pytest.approx(kept / total, rel=1e-3)


def test_dora_over_another_base_is_refused(tmp_path: Path, base: Any) -> None:
    options = {"r": 2, "target_modules": ["q_proj"], "use_dora": True}
    peft.get_peft_model(tiny_llama(), peft.LoraConfig(**options)).save_pretrained(tmp_path / "dora")
    config, tensors, digest = read_all(tmp_path / "dora")
    module = next(iter(tensors)).removeprefix("base_model.model.").partition(".lora_")[0]
    with pytest.raises(UnsupportedFormat, match="another shape"):
        convert_dora("x", (config, tensors, digest), lambda name: 1.0, lambda name: torch.ones(3, 3), 4)
    with pytest.raises(BaseModelUnreadable, match="no module"):
        BaseWeights(base).of(module.replace("layers.0", "layers.99"))
    incomplete = {name: tensor for name, tensor in tensors.items() if "magnitude" not in name}
    with pytest.raises(UnsupportedFormat, match="lacks"):
        convert_dora("x", (config, incomplete, digest), lambda name: 1.0, BaseWeights(base).of, 4)
    poisoned = {name: tensor * float("nan") if "lora_B" in name else tensor for name, tensor in tensors.items()}
    with pytest.raises(NonFinite):
        convert_dora("x", (config, poisoned, digest), lambda name: 1.0, BaseWeights(base).of, 4)
