"""Other kinds of adapter as factors: equal to the deltas PEFT computes, module by module."""

import pytest
import torch
from typer.testing import CliRunner

from amalgam.errors.merging import UnsupportedFormat
from amalgam.merge.formats import convert
from amalgam.store.tensor_files import read_all
from tests.golden.test_peft import tiny_llama

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
def adapters(tmp_path_factory):
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
def test_factors_are_pefts_delta(adapters, name):
    folder, deltas = adapters[name]
    source = convert("x", *read_all(folder))
    assert set(source.header.modules) == set(deltas)
    for module, delta in deltas.items():
        a, b = source.factors(module)
        found = source.header.modules[module].scaling * (b.double() @ a.double())
        assert float((found - delta).norm() / delta.norm()) < 1e-6, module


def test_the_command_line_merges_kinds(adapters, tmp_path):
    from amalgam.cli.merge import app

    expression = f"{adapters['loha'][0]} + 0.5*{adapters['adalora'][0]}"
    done = CliRunner().invoke(app, ["build", expression, "-o", str(tmp_path / "out"), "--dtype", "float32"])
    assert done.exit_code == 0, done.output


def test_what_no_factors_express_is_refused(adapters):
    folder, _ = adapters["loha"]
    config, tensors, digest = read_all(folder)
    for wrong in ({"peft_type": "IA3"}, {"peft_type": "VERA"}, {}):
        with pytest.raises(UnsupportedFormat):
            convert("x", wrong, tensors, digest)
    with pytest.raises(UnsupportedFormat, match="no place"):
        convert("x", config, {**tensors, "base_model.model.m.lora_A.weight": torch.ones(2, 2)}, digest)
    with pytest.raises(UnsupportedFormat, match="lacks"):
        convert("x", config, {next(iter(tensors)): next(iter(tensors.values()))}, digest)
