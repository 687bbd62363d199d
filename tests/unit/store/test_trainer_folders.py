"""What training programs leave beside an adapter and put into its keys, through every road: all say the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from amalgam.store.file_rules import judge_names
from amalgam.store.peft_folder import read_peft_folder
from tests.adapter_factory import encode_safetensors
from tests.unit.store.test_folder_roads import (
    MODULES,
    PICKLE,
    PREFIX,
    WEIGHTS,
    base,
    factors,
    renamed,
    store,
    verdicts,
    write,
)

__all__ = ["base", "store", "verdicts"]  # fixtures

Make = Callable[[Path], None]
LEFTOVERS: Final[dict[str, tuple[str, ...]]] = {
    "DeepSpeed": (
        "global_step100/mp_rank_00_model_states.pt", "global_step100/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "latest", "zero_to_fp32.py", "zero_pp_rank_0_mp_rank_00_model_states.pt",
    ),
    "FSDP": (
        "pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "optimizer_0/__0_0.distcp",
        "pytorch_model_fsdp.bin", "optimizer.bin", "random_states_0.pkl",
    ),
    "unsloth": ("chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"),
    "axolotl": ("config.json", "debug.log", "axolotl_config.yml", "merged/model.safetensors", "runs/x/events.out"),
    "LLaMA-Factory": ("all_results.json", "trainer_log.jsonl", "training_loss.png", "generation_config.json"),
    "swift": ("args.json", "additional_config.json", "logging.jsonl", "images/train_loss.png", "sft_args.json"),
    "torchtune": ("adapter_0.pt", "recipe_state.pt", "model-00001-of-00002.safetensors", "torchtune_config.yaml"),
    "Trainer": ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state_0.pth", "training_args.bin"),
    "odd": ("optimizer.pt/x", "adapter_model.bin", "ADAPTER_MODEL.PT", "pytorch_model.bin", "README.md.orig"),
}  # fmt: skip
"""By program, what lies beside an adapter that it saved."""

KEYS: Final[dict[str, Callable[[str], str]]] = {
    "FSDP around everything": lambda name: "_fsdp_wrapped_module." + name,
    "FSDP and DataParallel around everything": lambda name: "module._fsdp_wrapped_module." + name,
    "FSDP around layers": lambda name: name.replace("layers.1", "layers.1._fsdp_wrapped_module"),
    "fairscale's FSDP": lambda name: name.replace("layers.1", "layers.1._fpw_module"),
    "activation checkpointing": lambda name: name.replace("layers.1", "layers.1._checkpoint_wrapped_module"),
    "all at once": lambda name: (
        "module." + name.replace("layers.1", "layers.1._fsdp_wrapped_module._orig_mod._checkpoint_wrapped_module")
    ).replace(".weight", ".default.weight"),
    "a class around the model": lambda name: "model." + name,
    "a state dict of a trainer": lambda name: "state_dict.policy." + name,
}
"""What ways of training put into the names of tensors."""

UNSLOTH: Final[dict[str, Any]] = {
    "alora_invocation_tokens": None, "arrow_config": None, "base_model_name_or_path": "unsloth/tiny-bnb-4bit",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True}, "ensure_weight_tying": False,
    "lora_bias": False, "peft_version": "0.18.0", "qalora_group_size": 16, "target_parameters": None,
    "trainable_token_indices": None, "use_qalora": False, "modules_to_save": None, "loftq_config": None,
}  # fmt: skip


def leaving(*names: str) -> Make:
    def make(folder: Path) -> None:
        config: dict[str, Any] = UNSLOTH if "chat_template.jinja" in names else {}
        write(folder, factors(), **config)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(PICKLE if name.endswith((".pt", ".pth", ".bin", ".pkl")) else b"{}")

    return make


def without_weights(program: str) -> Make:
    def make(folder: Path) -> None:
        leaving(*LEFTOVERS[program])(folder)
        (folder / WEIGHTS).unlink()

    return make


def in_a_folder_below(folder: Path) -> None:
    write(folder / "default", factors())
    (folder / "README.md").write_text("# Two adapters")


def in_place_of(name: str, content: bytes) -> Make:
    """A file that a download or version control left there."""

    def make(folder: Path) -> None:
        write(folder, factors())
        (folder / name).write_bytes(content)

    return make


def called(name: str) -> Make:
    def make(folder: Path) -> None:
        write(folder, factors())
        (folder / WEIGHTS).rename(folder / name)

    return make


POINTER: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3452\n"
MISTAKEN: Final[dict[str, tuple[bytes, str]]] = {
    "a pointer of Git LFS": (POINTER, "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "Fetch the file itself"),
    "an error of S3": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "Fetch the file itself"),
    "nothing": (b"", "Save or fetch it again"),
    "zeros": (b"\0" * 4096, "Fetch it again"),
    "compressed": (b"\x1f\x8b\x08\x00" + b"x" * 60, "Unpack it"),
    "another program's": (b"GGUF\x03\0\0\0" + b"\0" * 40, "ending .gguf"),
}
"""What lies in the place of a file, and what to do."""


def expected() -> dict[str, torch.Tensor]:
    found = {name: torch.from_numpy(value).double() for name, value in factors().items()}
    pairs = {module: [found[f"{PREFIX}{module}.lora_{factor}.weight"] for factor in "BA"] for module in MODULES}
    return {module: 2.0 * b @ a for module, (b, a) in pairs.items()}


@pytest.mark.parametrize("program", LEFTOVERS)
def test_what_a_program_leaves_beside_is_named_once_and_changes_nothing(program: str, verdicts: Any) -> None:
    for road, found in verdicts(leaving(*LEFTOVERS[program])):
        assert found.errors == frozenset(), (road, found.texts)
        assert found.warnings - {"base_unverified"} <= {"file_ignored", "profile_available"}, (road, found.texts)
        assert all(torch.equal(found.deltas[module], delta) for module, delta in expected().items()), road
        assert sum("left out" in text for text in found.texts) == 1, (road, found.texts)


@pytest.mark.parametrize("way", KEYS)
def test_what_a_way_of_training_puts_into_names_is_read_away_and_said(way: str, verdicts: Any) -> None:
    for road, found in verdicts(renamed(KEYS[way])):
        assert found.errors == frozenset(), (road, found.texts)
        assert found.warnings == {"keys_renamed"}, (road, found.texts)
        assert all(torch.equal(found.deltas[module], delta) for module, delta in expected().items()), road


@pytest.mark.parametrize(("make", "code", "step"), [
    (without_weights("FSDP"), "missing_file", "Gather them"),
    (without_weights("DeepSpeed"), "missing_file", "Gather them"),
    (without_weights("torchtune"), "unsafe_format", "safe_serialization=True"),
], ids=["FSDP", "DeepSpeed", "torchtune"])  # fmt: skip
def test_what_only_training_can_go_on_from_is_refused_with_a_next_step(
    make: Make, code: str, step: str, verdicts: Any
) -> None:
    for road, found in verdicts(make):
        assert found.errors == {code}, (road, found.texts)
        assert any(step in text for text in found.texts), (road, found.texts)


def test_an_adapter_in_a_folder_below_is_pointed_at(tmp_path: Path) -> None:
    in_a_folder_below(tmp_path)
    found = read_peft_folder(tmp_path, None)
    assert {finding.code for finding in found.errors} == {"missing_file"}
    assert "'default/'" in found.errors[0].message
    assert read_peft_folder(tmp_path / "default", None).errors == ()


def test_what_other_programs_wrote_is_refused_with_what_makes_a_peft_folder_of_it(tmp_path: Path) -> None:
    (tmp_path / "adapters.safetensors").write_bytes(encode_safetensors({"a": np.zeros((2, 2), np.float32)}, "float32"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "num_layers": 2}))
    found = read_peft_folder(tmp_path, None)
    assert any("amalgam merge build" in finding.message for finding in found.errors)
    [finding] = [one for one in judge_names(["model-lora.gguf"]) if one.severity == "error"]
    assert "amalgam merge build" in finding.message


@pytest.mark.parametrize("kind", MISTAKEN)
@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_what_lies_in_the_place_of_a_file_is_told_by_its_beginning(name: str, kind: str, verdicts: Any) -> None:
    content, step = MISTAKEN[kind]
    for road, found in verdicts(in_place_of(name, content)):
        assert found.errors & {"invalid_header", "invalid_config"}, (road, found.texts)
        assert any(name in text and step in text for text in found.texts), (road, found.texts)


@pytest.mark.parametrize(("name", "step"), [
    ("adapter_model (1).safetensors", f"call it {WEIGHTS}"), ("lora.safetensors", f"call it {WEIGHTS}"),
    ("model.safetensors", "amalgam serve"), ("pytorch_lora_weights.safetensors", "amalgam merge build"),
])  # fmt: skip
def test_weights_under_another_name_are_told_with_what_to_do(name: str, step: str, tmp_path: Path) -> None:
    called(name)(tmp_path)
    found = read_peft_folder(tmp_path, None)
    assert {finding.code for finding in found.errors} == {"missing_file"}
    assert step in found.errors[0].message
