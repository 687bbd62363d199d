"""Tiny models of many families: their modules are known, adapters for them fit, merge and export as PEFT computes."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from amalgam.domain.adapter import BaseModelSpec
from amalgam.domain.expression import parse_expression
from amalgam.merge.build import BuildOptions
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.base_model import base_spec
from amalgam.store.canonical_folder import make_canonical
from amalgam.store.checkpoint_tensors import checkpoint_tensors
from amalgam.store.linear_modules import linear_modules
from amalgam.store.module_names import renaming
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import AdapterTensors, open_tensors
from amalgam.workers.exporter import describe_export
from tests.export_factory import export
from tests.models.more_models import MORE
from tests.models.packings import PACKINGS
from tests.models.tiny_models import FAMILIES, build, family_of, logits, respell, write_adapter, write_model

LATE = pytest.mark.skipif(not os.environ.get("AMALGAM_TEST_MODELS"), reason="run with make test-models")
ROOT = Path(__file__).resolve().parents[2]
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
EXPORTED = 2e-5
"""Of logits of order one: weights are added in float32 in both, in another order."""
EVERY = [*FAMILIES, *(pytest.param(name, marks=LATE) for name in MORE)]
OLDER = [
    *(name for name, family in FAMILIES.items() if family.older),
    *(pytest.param(name, marks=LATE) for name, family in MORE.items() if family.older),
]
COLUMNS = ["served", "validated", "merged", "exported"]
TOWERS = [
    *(name for name, family in FAMILIES.items() if family.sees),
    *(pytest.param(name, marks=LATE) for name, family in MORE.items() if family.sees or family.hears),
]


def targets(family: str) -> Any:
    """``all-linear``; where layers have routed experts, their attention alone."""
    row = family_of(family)
    return "all-linear" if row.all_linear and not row.experts else list(row.attention)


def saved(family: str, folder: Path) -> BaseModelSpec:
    """The model on disk; its live twin has the same weights."""
    write_model(family, folder)
    return base_spec(folder, family, 64)


def adapter(family: str, folder: Path, seed: int = 1, **options: Any) -> torch.nn.Module:
    """A random one in ``folder``, and PEFT's model with it."""
    return write_adapter(build(family), folder, targets(family), seed=seed, **options)


def opened(folder: Path, base: BaseModelSpec) -> AdapterTensors:
    return open_tensors(folder, read_peft_folder(folder, base).require(), rename=base.rename)


def linear_names(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            found[name] = (module.weight.shape[1], module.weight.shape[0])
        elif isinstance(module, torch.nn.Linear):
            found[name] = (module.out_features, module.in_features)
    return found


@pytest.mark.parametrize("family", EVERY)
def test_every_linear_module_is_known_and_an_adapter_of_all_of_them_fits(family: str, tmp_path: Path) -> None:
    base = saved(family, tmp_path / "base")
    model = build(family)
    known = linear_names(model)
    output = next((name for name, one in model.named_modules() if one is model.get_output_embeddings()), None)
    if output is not None and output not in base.linear_shapes:
        # It shares the embedding's weight.
        known.pop(output, None)
    assert {name: base.linear_shapes.get(base.rename(name)) for name in known} == known
    adapter(family, tmp_path / "adapter")
    assert read_peft_folder(tmp_path / "adapter", base).errors == ()


@pytest.mark.parametrize("family", OLDER)
def test_an_adapter_with_older_names_is_the_same_adapter(family: str, tmp_path: Path) -> None:
    base = saved(family, tmp_path / "base")
    for name in ("today", "older"):
        adapter(family, tmp_path / name)
    respell(tmp_path / "older", family_of(family).older)
    keys = [load_file(tmp_path / name / "adapter_model.safetensors").keys() for name in ("today", "older")]
    assert keys[0] != keys[1]
    today, older = (read_peft_folder(tmp_path / name, base) for name in ("today", "older"))
    assert older.errors == ()
    assert older.require().modules == today.require().modules


@pytest.mark.parametrize("family", EVERY)
def test_an_export_of_a_blend_answers_as_peft_merges_it(family: str, tmp_path: Path) -> None:
    base = saved(family, tmp_path / "base")
    adapter(family, tmp_path / "a", seed=1)
    adapter(family, tmp_path / "b", seed=2)
    peft = PeftModel.from_pretrained(build(family), tmp_path / "a", "a")
    peft.load_adapter(tmp_path / "b", "b")
    peft.add_weighted_adapter(["a", "b"], [0.75, 0.5], "both", combination_type="cat")
    peft.set_adapter("both")
    expected = logits(peft.merge_and_unload().eval(), TOKENS)
    assert (expected - logits(build(family), TOKENS)).abs().max() > 100 * EXPORTED
    respell(tmp_path / "b", family_of(family).older)

    paths = [str(tmp_path / name) for name in ("a", "b")]
    recipe = parse_expression(f"0.75*{paths[0]} + 0.5*{paths[1]}", allow_paths=True)
    sources = {path: opened(Path(path), base) for path in paths}
    options = BuildOptions(max_rank=64)
    order = describe_export(recipe, sources, tmp_path / "base", options, dtype="base", max_shard_bytes=1 << 30)
    export(order, tmp_path / "exports" / "blend")
    model = getattr(transformers, family_of(family).model).from_pretrained(tmp_path / "exports" / "blend")
    torch.testing.assert_close(logits(model.eval(), TOKENS), expected, atol=EXPORTED, rtol=0)


def test_an_adapter_with_older_names_is_stored_under_todays_with_its_ranks_and_scales(tmp_path: Path) -> None:
    base = saved("llava", tmp_path / "base")
    folder = tmp_path / "older"
    pattern = {"model.language_model.layers.0.self_attn.q_proj": 2}
    adapter("llava", folder, rank_pattern=pattern, alpha_pattern=pattern)
    respell(folder, FAMILIES["llava"].older)
    old = {r"^language_model\.model\.layers\.0\.self_attn\.q_proj": 2}
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"rank_pattern": old, "alpha_pattern": old}
    path.write_text(json.dumps(config))

    store = AdapterStore.open(tmp_path / "store")
    with store.stage() as staging:
        for file in folder.glob("adapter_*"):
            shutil.copy(file, staging.folder)
        found = read_peft_folder(staging.folder, base)
        make_canonical(staging, found)
        stored = store.path(store.publish(staging).digest)
    header = found.require()
    assert header.modules["model.language_model.layers.0.self_attn.q_proj"].rank == 2
    # Whoever reads the stored form knows nothing of the base model.
    assert read_peft_folder(stored, None).require().modules == header.modules
    peft = PeftModel.from_pretrained(build("llava"), stored)
    before = logits(build("llava"), TOKENS)
    assert (logits(peft.eval(), TOKENS) - before).abs().max() > 100 * EXPORTED


@pytest.mark.parametrize("family", TOWERS)
def test_adapters_of_the_parts_that_see_or_hear_are_refused_by_name_where_they_would_do_nothing(
    family: str, tmp_path: Path
) -> None:
    base = saved(family, tmp_path / "base")
    assert base.reads == {"audio" if family_of(family).hears else "image"}
    adapter(family, tmp_path / "all")
    assert read_peft_folder(tmp_path / "all", base).errors == ()
    refused = read_peft_folder(tmp_path / "all", replace(base, adapts_towers=False)).errors
    assert {error.code for error in refused} == {"unsupported_modules"}
    for error in refused:
        assert error.module is None or "language_model." not in error.module
        assert error.module is None or not error.module.startswith("model.text_model.")
    targets = r".*(language|text)_model.*\.(q_proj|k_proj|v_proj|o_proj)"
    write_adapter(build(family), tmp_path / "text", targets, seed=1)
    assert read_peft_folder(tmp_path / "text", replace(base, adapts_towers=False)).errors == ()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("fan_in_fan_out", [True, False])
def test_what_a_config_says_of_transposition_does_not_change_factors(
    family: str, fan_in_fan_out: bool, tmp_path: Path
) -> None:
    """PEFT itself corrects the field by the kind of module; A is [rank, in] and B [out, rank] either way."""
    base = saved(family, tmp_path / "base")
    adapter(family, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": fan_in_fan_out}))
    assert read_peft_folder(tmp_path / "adapter", base).findings == ()


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.experts])
def test_where_experts_cannot_be_adapted_adapters_of_them_are_refused_by_name(family: str, tmp_path: Path) -> None:
    base = saved(family, tmp_path / "base")
    routed = sorted(name for name in base.linear_shapes if base.routes(name))
    kept = sorted(base.linear_shapes.keys() - set(routed))
    assert any(name.endswith(".gate") for name in routed)
    assert sum(".experts." in name for name in routed) == 2 * 4 * 3
    assert any(name.endswith(".q_proj") for name in kept)

    for number, module in enumerate([routed[0], next(name for name in routed if name.endswith(".gate")), kept[-1]]):
        folder = tmp_path / str(number)
        write_pair(folder, module, base.linear_shapes[module])
        assert read_peft_folder(folder, base).errors == ()
        refused = read_peft_folder(folder, replace(base, adapts_experts=False)).errors
        assert [(error.code, error.module) for error in refused] == (
            [] if module in kept else [("unsupported_modules", module)]
        )


def write_pair(folder: Path, module: str, shape: tuple[int, int]) -> None:
    """An adapter of one module, rank 1."""
    folder.mkdir()
    factors = {"lora_A": torch.full((1, shape[1]), 0.01), "lora_B": torch.full((shape[0], 1), 0.01)}
    save_file(
        {f"base_model.model.{module}.{name}.weight": factor for name, factor in factors.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [module.rpartition(".")[2]]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_the_manual_names_every_family_that_is_checked() -> None:
    table = re.sub(r"[^a-z0-9|]", "", (ROOT / "docs" / "models.md").read_text().lower())
    for family in (*FAMILIES, *MORE):
        name = family.removesuffix("_tied").removesuffix("_text").replace("_", "")
        assert name in table or name.replace("gemma3", "gemma2and3").replace("gemma2", "gemma2and3") in table, family
    for method in PACKINGS:
        assert method.replace("-", "") in table, method


def test_a_vision_tower_has_one_name_whichever_release_wrote_it() -> None:
    rename = renaming({"text_config": {}, "vision_config": {}}, ())
    inner = "encoder.layers.0.self_attn.q_proj"
    for name in (
        "vision_tower.vision_model.",
        "model.vision_tower.vision_model.",
        "vision_tower.",
        "model.vision_tower.",
    ):
        assert rename(name + inner) == f"model.vision_tower.{inner}"


READ_BY_NAME = [
    *(name for name, family in FAMILIES.items() if not family.hears),
    *(pytest.param(name, marks=LATE) for name, family in MORE.items() if not family.hears),
]
"""Of models that hear, transformers saves tiny ones with a level of names that no published checkpoint has."""


@pytest.mark.parametrize("family", READ_BY_NAME)
def test_vllm_reads_a_module_by_its_one_name_as_by_that_in_the_checkpoint(family: str, tmp_path: Path) -> None:
    """Else an adapter would be stored under a name that the engine does not know."""
    registry = pytest.importorskip("vllm.model_executor.models.registry").ModelRegistry
    if family_of(family).sees:
        pytest.importorskip("torchvision", reason="vLLM's classes that see import it; make test-models installs it")
    found = registry.models.get(family_of(family).model)
    if found is None:
        pytest.skip("vLLM has no class for it")
    base = saved(family, tmp_path)
    mapper = getattr(found.load_model_cls(), "hf_to_vllm_mapper", None)

    def read(name: str) -> str | None:
        mapped: str | None = f"{name}.weight" if mapper is None else mapper._map_name(f"{name}.weight")
        return mapped

    tensors = checkpoint_tensors(tmp_path)
    assert tensors is not None
    linear = linear_modules(tmp_path, json.loads((tmp_path / "config.json").read_text()), tensors)
    plain = {name: module for name, module in linear.items() if name in base.plain_modules}
    assert plain
    assert {name: read(name) for name in plain} == {name: read(module.stored) for name, module in plain.items()}


@pytest.mark.parametrize(
    ("config", "spellings"),
    [
        ({"model_type": "nemotron_h"}, ["backbone.layers.1.mixer.q_proj", "model.layers.1.mixer.q_proj"]),
        ({"model_type": "hy_v3"}, ["layers.1.mlp.shared_experts.up_proj", "layers.1.mlp.shared_mlp.up_proj"]),
        ({"model_type": "hy_v3"}, ["model.layers.1.mlp.router.gate", "model.layers.1.mlp.gate"]),
        ({"model_type": "laguna"}, ["layers.1.mlp.shared_experts.up_proj", "layers.1.mlp.shared_expert.up_proj"]),
        (
            {"model_type": "llama4", "text_config": {}, "vision_config": {}},
            [
                "model.language_model.layers.0.self_attn.q_proj",
                "language_model.layers.0.self_attn.q_proj",
                "language_model.model.layers.0.self_attn.q_proj",
            ],
        ),
        (
            {"model_type": "nemotron_h_omni", "text_config": {}, "vision_config": {}},
            ["language_model.backbone.layers.0.mixer.q_proj", "language_model.model.layers.0.mixer.q_proj"],
        ),
    ],
)  # fmt: skip
def test_a_module_is_known_by_the_name_that_vllm_reads_however_it_is_spelled(
    config: dict[str, Any], spellings: list[str]
) -> None:
    """The last is vLLM's."""
    assert {renaming(config, ())(name) for name in spellings} == {spellings[-1]}


def test_every_cell_of_the_manuals_table_names_tests_that_are_there_or_says_why_not() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    table = text[text.index("Each cell is held by a test") :].split("\n\n")[1].splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == ["base", *COLUMNS]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    assert len(rows) == 9
    defined = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    for row in rows:
        assert len(row) == 1 + len(COLUMNS)
        for cell in row[1:]:
            named = re.findall(r"`([^`]+)`", cell)
            assert named or re.fullmatch(r"no test of its own: [a-z ]{10,}", cell), cell
            for name in named:
                assert (ROOT / name).is_file() or f"def {name}(" in defined, name
