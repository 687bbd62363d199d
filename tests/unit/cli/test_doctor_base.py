"""`amalgam doctor` of folders that are no base model, or one that is too large: each is told in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from amalgam.cli import doctor_model
from amalgam.cli.doctor_model import Served, check_fit, check_model
from amalgam.engine import sound_rates
from amalgam.settings import Settings
from tests.models.tiny_models import build, write_adapter, write_model

SERVED = Served("cpu", known=True, adapted=True, memory=24 << 30)
LARGE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "dtype": "bfloat16",
}  # fmt: skip


def nothing(_: Path) -> None:
    """Of a folder that is not there."""


def empty(folder: Path) -> None:
    folder.mkdir()


def a_file(folder: Path) -> None:
    folder.write_bytes(b"GGUF")


def gguf(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")


def an_adapter(folder: Path) -> None:
    write_adapter(build("llama"), folder, ["q_proj"])


def without_config(folder: Path) -> None:
    write_model("llama", folder)
    (folder / "config.json").unlink()


def without_weights(folder: Path) -> None:
    write_model("llama", folder)
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK")


def not_json(folder: Path) -> None:
    write_model("llama", folder)
    (folder / "config.json").write_text("{")


def cut_short(folder: Path) -> None:
    write_model("llama", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def without_a_shard(folder: Path) -> None:
    without_weights(folder)
    (folder / "other.safetensors").write_bytes(b"")
    weight_map = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def large(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LARGE))


CASES: list[tuple[Callable[[Path], None], str]] = [
    (nothing, "does not exist. Give the folder of a base model."),
    (a_file, "is a file. Give the folder with config.json and safetensors."),
    (empty, "lacks config.json. Fetch the model's whole repository."),
    (gguf, "has GGUF and no config.json. Give the folder of the same model in safetensors."),
    (an_adapter, "is an adapter. Give the folder of its base model first and this one after it."),
    (without_config, "lacks config.json. Fetch the model's whole repository."),
    (without_weights, "lacks safetensors, the weights. Fetch the model's whole repository."),
    (pickled, "in a format that can run code. Convert them to safetensors."),
    (not_json, "cannot be read: config.json is not JSON. Fetch the model's whole repository."),
    (cut_short, "at most 92 are possible. Fetch the model's whole repository."),
    (without_a_shard, "cannot be read: model-00002-of-00002.safetensors: No such file or directory."),
    (large, "its weights take 131.4 GiB and this device has 24.0 GiB. Take a larger device."),
]


@pytest.mark.parametrize(("make", "words"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_what_is_no_base_model_here_is_an_error_with_the_next_step(
    make: Callable[[Path], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: SERVED)
    folder = tmp_path / "base"
    make(folder)
    found = [*check_model(folder), *check_fit(Settings(), folder, ())]
    errors = [one.text for one in found if one.verdict == "error"]
    assert any(words in text for text in errors), errors
    assert all(str(folder) in text or "weights take" in text for text in errors)


@pytest.mark.parametrize(("memory", "is_too_large"), [(0, False), (1 << 10, True), (24 << 30, False)])
def test_weights_are_compared_with_the_memory_of_the_device_where_that_is_known(
    memory: int, is_too_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: Served("cuda", known=True, adapted=True, memory=memory))
    write_model("llama", tmp_path)
    found = list(check_fit(Settings(), tmp_path, ()))
    assert "MiB" in found[0].text
    assert any("Take a larger device" in one.text for one in found) is is_too_large


@pytest.mark.parametrize(
    ("installed", "warned"),
    [
        (set(), "soundfile or av"),
        ({"soundfile"}, "at the model's own rate"),
        ({"soundfile", "scipy"}, None),
        ({"av"}, None),
    ],
)
def test_a_base_that_hears_needs_what_unpacks_sounds_and_no_torchvision(
    installed: set[str], warned: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: SERVED)
    for module in (doctor_model, sound_rates):
        monkeypatch.setattr(module, "find_spec", lambda name: object() if name in installed else None)
    write_model("audioflamingo3", tmp_path)
    found = list(check_fit(Settings(), tmp_path, ()))
    assert not [one for one in found if one.verdict == "error"]
    warnings = [one.text for one in found if one.verdict == "warning"]
    assert len(warnings) == (warned is not None), warnings
    assert all(warned is not None and warned in text for text in warnings)
