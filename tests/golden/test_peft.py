"""Against PEFT itself, in process, on a tiny Llama: the same numbers where PEFT is right, the same logits on reload."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from amalgam.merge.build import BuildOptions, build_adapter
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import FolderSink, open_tensors
from tests.merge_factory import make_recipe

peft = pytest.importorskip("peft")

LOGITS = 2e-5
"""float32 logits of order 1 through two layers, summed in another order."""

FACTORS = 1e-6

CONFIGS = {
    "a": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "down_proj"]},
    "b": {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "c": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj", "down_proj"],
          "rank_pattern": {"layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"layers.0.mlp.up_proj": 9}},
    "d": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "down_proj"]},
}  # fmt: skip


def tiny_llama() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, max_position_embeddings=64, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Adapters as PEFT writes them, with random factors."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(task_type="CAUSAL_LM", **config))
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        model.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def loaded(folders: Any) -> Any:
    """One model with every adapter loaded, in PEFT."""
    model = peft.PeftModel.from_pretrained(tiny_llama(), folders / "a", adapter_name="a")
    for name in ("b", "c", "d"):
        model.load_adapter(folders / name, adapter_name=name)
    return model.eval()


def sources(folders: Any, names: Any) -> Any:
    found = {}
    for name in names:
        header = read_peft_folder(folders / name, None).require()
        found[name] = open_tensors(folders / name, header)
    return found


def build(folders: Any, out: Any, recipe: Any) -> Any:
    opened = sources(folders, recipe.adapters)
    return build_adapter(recipe, opened, FolderSink(out), BuildOptions(max_rank=64))


def deltas(model: Any, adapter: Any) -> Any:
    return {name.removeprefix("base_model.model."): module.get_delta_weight(adapter).double()
            for name, module in model.named_modules()
            if hasattr(module, "get_delta_weight") and adapter in module.lora_A}  # fmt: skip


def tokens() -> Any:
    return torch.arange(24).view(2, 12) % 61


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv", "karcher"])
def test_reloaded_in_peft_it_gives_the_logits_of_base_plus_delta(
    folders: Any, loaded: Any, tmp_path: Path, method: str
) -> None:
    weights = {"a": 1.0, "b": 0.5, "c": 0.25} if method == "karcher" else {"a": 1.0, "b": -0.5, "c": 0.8}
    build(folders, tmp_path / "out", make_recipe(method, weights))
    reloaded = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "out").eval()
    dense = tiny_llama()
    names = dict(dense.named_modules())
    header = read_peft_folder(tmp_path / "out", None).require()
    opened = open_tensors(tmp_path / "out", header)
    for module in header.modules.values():
        a, b = opened.factors(module.name)
        assert module.scaling == 1.0
        names[module.name].weight.data += b @ a
    if method == "task_arithmetic":
        parts = {name: deltas(loaded, name) for name in weights}
        for name, module in names.items():
            exact = sum(w * parts[n][name] for n, w in weights.items() if name in parts[n])
            if not isinstance(exact, int):
                plain = dict(tiny_llama().named_modules())[name].weight.data.double()
                assert torch.allclose(module.weight.data.double(), plain + exact, atol=1e-6)
    with torch.no_grad():
        found, expected = reloaded(tokens()).logits, dense(tokens()).logits
    assert float((found - expected).abs().max()) < LOGITS
    assert float((found - tiny_llama()(tokens()).logits.detach()).abs().max()) > 100 * LOGITS


@pytest.mark.parametrize(("ours", "theirs"), [("cat", "cat"), ("svd", "svd")])
def test_linear_methods_agree_with_peft(folders: Any, loaded: Any, tmp_path: Path, ours: str, theirs: str) -> None:
    options = {"rank": 4} if ours == "svd" else {}
    weights = {"a": 1.0, "d": -0.5}
    build(folders, tmp_path, make_recipe(ours, weights, **options))
    loaded.add_weighted_adapter(list(weights), list(weights.values()), theirs, theirs, svd_rank=4)
    expected = deltas(loaded, theirs)
    loaded.delete_adapter(theirs)
    compare(tmp_path, expected, FACTORS * 20)


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("ties", "ties"),
                                              ("magnitude_prune", "magnitude_prune")])  # fmt: skip
def test_factor_space_is_peft(folders: Any, loaded: Any, tmp_path: Path, ours: str, theirs: str) -> None:
    weights = {"a": 1.0, "d": 0.5} if ours != "magnitude_prune" else {"a": 1.0, "d": -0.5}
    parameters = {} if ours == "linear" else {"density": 0.4}
    method = "task_arithmetic" if ours == "linear" else ours
    build(folders, tmp_path, make_recipe(method, weights, space="factor", parameters=parameters))
    loaded.add_weighted_adapter(list(weights), list(weights.values()), "x", theirs, density=0.4)
    expected = deltas(loaded, "x")
    loaded.delete_adapter("x")
    compare(tmp_path, expected, FACTORS * 20)


def test_delta_ties_is_pefts_ties_on_dense_deltas_with_equal_weights(folders: Any, loaded: Any, tmp_path: Path) -> None:
    from peft.utils.merge_utils import ties

    build(
        folders,
        tmp_path,
        make_recipe("ties", {"a": 1.0, "d": 1.0}, space="delta", rank=32, parameters={"density": 0.3}),
    )
    parts = deltas(loaded, "a"), deltas(loaded, "d")
    expected = {name: ties([parts[0][name], parts[1][name]], torch.tensor([1.0, 1.0]), 0.3) for name in parts[0]}
    compare(tmp_path, expected, 1e-5)


def test_config_is_plain_lora(folders: Any, tmp_path: Path) -> None:
    build(folders, tmp_path, make_recipe("linear", {"a": 1.0, "b": 1.0}))
    config = peft.LoraConfig.from_pretrained(tmp_path)
    assert config.r == config.lora_alpha == 6
    assert not config.use_rslora
    assert config.rank_pattern == config.alpha_pattern
    assert set(config.rank_pattern.values()) == {2, 4}
    assert {name.rpartition(".")[2] for name in config.target_modules} == {"down_proj", "q_proj", "up_proj", "v_proj"}
    assert config.task_type == "CAUSAL_LM"
    assert json.loads((tmp_path / "adapter_config.json").read_text())["bias"] == "none"


def adapted(model: Any) -> Any:
    names = {name.partition(".lora_A")[0] for name in model.state_dict() if ".lora_A." in name}
    return {name.removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize("seen", [{"layers_to_transform": [0]}, {"exclude_modules": r".*layers\.0\.mlp.*"}])
def test_what_is_written_adapts_those_modules_and_no_others(seen: dict[str, Any], tmp_path: Path) -> None:
    """Also where the base model has layers that no input adapts."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], **seen)
    model = peft.get_peft_model(tiny_llama(), config)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.fill_(0.1)
    model.save_pretrained(tmp_path / "one")
    build(tmp_path, tmp_path / "out", make_recipe("task_arithmetic", {"one": 0.5}))
    assert adapted(peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "out")) == adapted(model)


def test_an_encoder_stays_an_encoder(tmp_path: Path) -> None:
    """Its modules have names without a head's prefix, and PEFT wraps it by its task."""
    from transformers import BertConfig, BertModel

    def tiny_bert() -> Any:
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
        return BertModel(BertConfig(vocab_size=64, **shape)).eval()

    model = peft.get_peft_model(
        tiny_bert(), peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query"])
    )
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.fill_(0.1)
    model.save_pretrained(tmp_path / "one")
    build(tmp_path, tmp_path / "out", make_recipe("task_arithmetic", {"one": 1.0}))
    assert peft.LoraConfig.from_pretrained(tmp_path / "out").task_type == "FEATURE_EXTRACTION"
    reloaded = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path / "out")
    assert type(reloaded) is peft.PeftModelForFeatureExtraction
    assert adapted(reloaded) == adapted(model)


def compare(folder: Any, expected: Any, tolerance: Any) -> None:
    opened = sources(folder.parent, [folder.name])[folder.name]
    assert set(opened.header.modules) == set(expected)
    for name, delta in expected.items():
        a, b = opened.factors(name)
        found = b.double() @ a.double()
        assert float((found - delta).norm() / delta.norm()) < tolerance, name
