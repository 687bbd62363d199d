"""One corpus of folders through every road: push, upload, ``file://``, ``hf://`` and an offline merge say the same."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer import Exit

from amalgam.cli import adapters as cli_adapters
from amalgam.cli.recipe_options import open_inputs
from amalgam.domain.adapter import BaseModelSpec
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.errors.adapters import InvalidAdapter
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.base_model import base_spec
from amalgam.store.canonical_folder import make_canonical
from amalgam.store.hub_source import HubSource
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.safetensors_header import read_header
from amalgam.store.sources import sources
from amalgam.store.staging import Staging
from amalgam.store.tensor_files import open_tensors
from tests.adapter_factory import encode_safetensors
from tests.unit.store.hub_stand_in import REPO, Hub
from tests.unit.store.tiny_base import CONFIG, HIDDEN, VOCABULARY, base_tensors

Tensors = dict[str, np.ndarray]
PREFIX = "base_model.model."
MODULES = tuple(f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_proj", "o_proj"))
WEIGHTS = "adapter_model.safetensors"
PICKLE = b"\x80\x04\x95x."


def factors() -> Tensors:
    rng = np.random.default_rng(5)
    return {
        f"{PREFIX}{module}.{factor}.weight": rng.standard_normal(shape).astype(np.float32)
        for module in MODULES
        for factor, shape in (("lora_A", (4, HIDDEN)), ("lora_B", (HIDDEN, 4)))
    }


EMBEDDING = np.random.default_rng(1).standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)


def write(folder: Path, tensors: Mapping[str, np.ndarray], *, name: str = WEIGHTS, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encode_safetensors(dict(tensors), "float32"))
    plain = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj"],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: write(folder, {change(name): value for name, value in factors().items()})


def trainer_output(folder: Path) -> None:
    write(folder, factors())
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "non_lora_trainables.bin"):
        (folder / name).write_bytes(PICKLE)
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md", "trainer_state.json", "adapter_model.bin"):
        (folder / name).write_bytes(b"{}")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.pt").write_bytes(PICKLE)


def sharded(folder: Path) -> None:
    names = sorted(factors())
    shards = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard, half in zip(shards, (names[:3], names[3:]), strict=True):
        write(folder, {name: factors()[name] for name in half}, name=shard)
    weight_map = {name: shards[int(place >= 3)] for place, name in enumerate(names)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def a_shard_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()


def shards_beside(folder: Path) -> None:
    sharded(folder)
    write(folder, factors())


def two_types(folder: Path) -> None:
    """B in float32 beside A in bfloat16; every A is exact in bfloat16."""
    tensors = factors()
    shorts = {name: (value.view(np.uint32) >> 16 << 16).view(np.float32) for name, value in tensors.items()}
    write(folder, {name: shorts[name] for name in tensors if "lora_A" in name})
    narrow = encode_safetensors({name: shorts[name] for name in tensors if "lora_A" in name}, "bfloat16")
    wide = encode_safetensors({name: value for name, value in tensors.items() if "lora_B" in name}, "float32")
    (folder / WEIGHTS).write_bytes(joined(narrow, wide))


def joined(*files: bytes) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for file in files:
        length = int.from_bytes(file[:8], "little")
        entries = json.loads(file[8 : 8 + length])
        for name, entry in entries.items():
            if name != "__metadata__":
                header[name] = entry | {"data_offsets": [offset + len(data) for offset in entry["data_offsets"]]}
        data += file[8 + length :]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_extra(name: str, value: np.ndarray, **config: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder, factors() | {name: value}, **config)


def pickled(folder: Path) -> None:
    write(folder, factors())
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def only_checkpoints(folder: Path) -> None:
    write(folder / "checkpoint-9", factors())
    write(folder / "checkpoint-10", factors())


def two_adapters(folder: Path) -> None:
    tensors = factors()
    both = {name.replace(".weight", f".{one}.weight"): value for name, value in tensors.items() for one in ("x", "y")}
    write(folder, both)


def bare_module(name: str) -> str:
    return name.removeprefix(PREFIX)


TAKEN: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "plain": (lambda folder: write(folder, factors()), set()),
    "without PEFT's prefix": (renamed(bare_module), set()),
    "Trainer output": (trainer_output, {"file_ignored"}),
    "sharded": (sharded, set()),
    "shards beside the whole": (shards_beside, {"file_ignored"}),
    "adapter's name in keys": (renamed(lambda n: n.replace(".weight", ".default.weight")), {"keys_renamed"}),
    "another adapter's name": (renamed(lambda n: n.replace(".weight", ".my-lora_2.weight")), {"keys_renamed"}),
    "compiled": (renamed(lambda n: n.replace(PREFIX, "_orig_mod." + PREFIX)), {"keys_renamed"}),
    "compiled inside": (renamed(lambda n: n.replace(PREFIX, PREFIX + "_orig_mod.")), {"keys_renamed"}),
    "compiled layers": (renamed(lambda n: n.replace(".self_attn", "._orig_mod.self_attn")), {"keys_renamed"}),
    "FSDP": (renamed(lambda n: n.replace("layers.0", "layers.0._fsdp_wrapped_module")), {"keys_renamed"}),
    "data parallel": (renamed(lambda n: "module." + n), {"keys_renamed"}),
    "doubled prefix": (renamed(lambda n: PREFIX + n), {"keys_renamed"}),
    "three prefixes and a name": (
        renamed(lambda n: PREFIX + PREFIX + n.replace(".weight", ".default.weight")),
        {"keys_renamed"},
    ),
    "two types": (two_types, set()),
    "copy of the embedding": (
        with_extra(f"{PREFIX}model.embed_tokens.base_layer.weight", EMBEDDING),
        {"base_weights_ignored"},
    ),
    "copy of the tied head": (
        with_extra(f"{PREFIX}lm_head.weight", EMBEDDING, modules_to_save=["lm_head"]),
        {"base_weights_ignored"},
    ),
    "copy of the tied head, as older PEFT writes it": (
        with_extra(f"{PREFIX}lm_head.modules_to_save.default.weight", EMBEDDING, modules_to_save=["lm_head"]),
        {"base_weights_ignored", "keys_renamed"},
    ),
    "VeLoRA": (
        with_extra(f"{PREFIX}{MODULES[0]}.lora_velora_embed", np.ones(8, np.float32), velora_config={"num_groups": 2}),
        {"training_tensors_ignored"},
    ),
    "MonteCLoRA": (
        with_extra(
            f"{PREFIX}{MODULES[0]}.lora_monteclora_sampler.std_prior",
            np.ones(4, np.float32),
            monteclora_config={"num_samples": 2},
        ),
        {"training_tensors_ignored"},
    ),
    "copy of the layer below": (
        with_extra(f"{PREFIX}{MODULES[0]}.base_layer.weight", np.ones((HIDDEN, HIDDEN), np.float32)),
        {"base_weights_ignored"},
    ),
}  # fmt: skip

REFUSED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "pickled weights": (pickled, "unsafe_format", "safe_serialization=True"),
    "a shard is missing": (a_shard_missing, "missing_file", "Add the others"),
    "only checkpoints": (only_checkpoints, "missing_file", "checkpoint-10"),
    "two adapters": (two_adapters, "several_adapters", "selected_adapters"),
    "another embedding": (
        with_extra(f"{PREFIX}model.embed_tokens.base_layer.weight", EMBEDDING * np.float32(1.01)),
        "unsupported_modules",
        "not the base model's",
    ),
    "another head": (
        with_extra(f"{PREFIX}lm_head.weight", -EMBEDDING, modules_to_save=["lm_head"]),
        "unsupported_modules",
        "not the base model's",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a road says of a folder."""

    errors: frozenset[str]
    warnings: frozenset[str]
    texts: tuple[str, ...]
    deltas: Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModelSpec:
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = base_tensors() | {"model.embed_tokens.weight": EMBEDDING}
    (folder / "model.safetensors").write_bytes(encode_safetensors(tensors, "bfloat16"))
    return base_spec(folder, "tiny", 16)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore.open(tmp_path / "store")


def served(store: AdapterStore, base: BaseModelSpec, fill: Callable[[Staging], object]) -> Verdict:
    """As the server takes it: judged, brought into the stored form, published and opened."""
    with store.stage() as staging:
        fill(staging)
        found = read_peft_folder(staging.folder, base, left_out=staging.left_out)
        findings = (*found.findings, *staging.findings)
        deltas: Mapping[str, torch.Tensor] = {}
        if not any(finding.severity == "error" for finding in findings):
            make_canonical(staging, found)
            folder = store.path(store.publish(staging).digest)
            assert_stored_form(folder)
            deltas = read_deltas(folder)
    return verdict(findings, deltas)


def assert_stored_form(folder: Path) -> None:
    spans = read_header(folder / WEIGHTS)
    for name, span in spans.items():
        assert name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")[0] in MODULES
        partner = name.replace("lora_A", "lora_B")
        assert span.dtype == spans[partner].dtype
    assert not json.loads((folder / "adapter_config.json").read_text()).get("modules_to_save")
    assert read_peft_folder(folder, None).findings == ()


def read_deltas(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_tensors(folder, read_peft_folder(folder, None).require())
    return multiplied(opened)


def multiplied(opened: Any) -> dict[str, torch.Tensor]:
    found = {}
    for name, module in opened.header.modules.items():
        a, b = opened.factors(name)
        found[name] = module.scaling * (b.double() @ a.double())
    return found


def verdict(findings: Any, deltas: Mapping[str, torch.Tensor]) -> Verdict:
    return Verdict(
        frozenset(f.code for f in findings if f.severity == "error"),
        frozenset(f.code for f in findings if f.severity == "warning"),
        tuple(f.message for f in findings),
        deltas,
    )


def upload(folder: Path, store: AdapterStore, base: BaseModelSpec) -> Verdict:
    def fill(staging: Staging) -> None:
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                # A form has no folders; what is known of them is known to whoever sends it.
                staging.leave_out(path.name + "/")
            else:
                staging.receive(path.name, [path.read_bytes()])

    return served(store, base, fill)


def push(folder: Path, store: AdapterStore, base: BaseModelSpec, capsys: pytest.CaptureFixture[str]) -> Verdict:
    capsys.readouterr()
    try:
        paths = cli_adapters.offered(folder)
    except Exit:
        text = capsys.readouterr().err.replace("\n", " ")
        code = "unsafe_format" if "pickle" in text else "missing_file"
        return Verdict(frozenset({code}), frozenset(), (text,), {})
    said = capsys.readouterr().err
    found = served(store, base, lambda staging: [staging.receive(p.name, [p.read_bytes()]) for p in paths])
    assert "file_ignored" not in found.warnings, "said by the server again"
    if "left out" in said:
        assert said.count("left out") == 1
        return Verdict(found.errors, found.warnings | {"file_ignored"}, (*found.texts, said), found.deltas)
    return found


def from_file(folder: Path, store: AdapterStore, base: BaseModelSpec) -> Verdict:
    return served(store, base, lambda staging: sources([folder.parent]).fetch(f"file://{folder}", staging))


def from_hub(folder: Path, store: AdapterStore, base: BaseModelSpec) -> Verdict:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub = Hub(files)
    try:
        found = served(store, base, lambda staging: HubSource(hub.url, 1 << 20).fetch(REPO, staging))
    finally:
        hub.close()
    assert not any(path.endswith((".bin", ".pt", ".pth")) for path in hub.asked)
    return found


def offline(folder: Path, base: BaseModelSpec) -> Verdict:
    assert base.folder is not None
    found = read_peft_folder(folder, base)
    deltas: Mapping[str, torch.Tensor] = {}
    recipe = Recipe(inputs=(RecipeInput(adapter=str(folder)),))
    if found.errors:
        with pytest.raises(InvalidAdapter) as caught:
            open_inputs(recipe, base.folder)
        assert {finding.code for finding in caught.value.findings} == {finding.code for finding in found.errors}
    else:
        deltas = multiplied(open_inputs(recipe, base.folder)[str(folder)])
    return verdict(found.findings, deltas)


@pytest.fixture
def verdicts(
    tmp_path: Path, store: AdapterStore, base: BaseModelSpec, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable[[Path], None]], Iterator[tuple[str, Verdict]]]:
    def walk(make: Callable[[Path], None]) -> Iterator[tuple[str, Verdict]]:
        folder = tmp_path / "folder"
        make(folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        yield "offline", offline(folder, base)
        yield "push", push(folder, store, base, capsys)
        yield "upload", upload(folder, store, base)
        yield "file", from_file(folder, store, base)
        if any(path.parent == folder for path in before):
            yield "hf", from_hub(folder, store, base)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    return walk


@pytest.mark.parametrize("name", TAKEN)
def test_sound_folders_are_taken_alike(name: str, verdicts: Any) -> None:
    make, warnings = TAKEN[name]
    expected = {
        module: 2.0
        * torch.from_numpy(factors()[f"{PREFIX}{module}.lora_B.weight"]).double()
        @ torch.from_numpy(factors()[f"{PREFIX}{module}.lora_A.weight"]).double()
        for module in MODULES
    }
    for road, found in verdicts(make):
        assert found.errors == frozenset(), (road, found.texts)
        assert found.warnings == warnings, (road, found.texts)
        assert set(found.deltas) == set(MODULES), road
        if name != "two types":
            assert all(torch.equal(found.deltas[module], expected[module]) for module in MODULES), road


@pytest.mark.parametrize("name", REFUSED)
def test_unsound_folders_are_refused_alike_with_the_next_step(name: str, verdicts: Any) -> None:
    make, code, step = REFUSED[name]
    for road, found in verdicts(make):
        wanted = {code} | ({"missing_file"} if name == "only checkpoints" else set())
        assert found.errors == wanted, (road, found.texts)
        assert any(step in text for text in found.texts), (road, found.texts)


def test_two_types_are_widened_and_never_rounded(tmp_path: Path, store: AdapterStore, base: BaseModelSpec) -> None:
    two_types(tmp_path / "folder")
    plain = upload(tmp_path / "folder", store, base).deltas
    straight = offline(tmp_path / "folder", base).deltas
    for module in MODULES:
        assert torch.equal(plain[module], straight[module])


def test_without_a_base_model_a_whole_weight_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path, factors() | {f"{PREFIX}lm_head.base_layer.weight": EMBEDDING})
    found = read_peft_folder(tmp_path, None)
    assert [finding.code for finding in found.errors] == ["unsupported_modules"]
    assert "--base" in found.errors[0].message
