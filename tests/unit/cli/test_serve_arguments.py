"""What `amalgam serve` asks of vLLM: our defaults first, the user's flags last."""

import json
from pathlib import Path

import pytest
import torch

from amalgam.cli import serve
from amalgam.engine.adaptable import ASKED
from amalgam.engine.cpu.preload import EXTENSION
from amalgam.engine.cpu.processor import CpuUnits
from amalgam.engine.vllm_arguments import adapter_places
from amalgam.errors.serving import FlagInvalid
from amalgam.settings import Settings

CONFIG = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(CONFIG)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("units", "capabilities", "dtype"),
    [
        ("detected", {"avx2": True}, "float32"),
        ("detected", {"avx512_bf16": False, "amx_bf16": True}, "auto"),
        ("detected", {"avx512_bf16": True}, "auto"),
        ("detected", {"bf16": True}, "auto"),
        ("bfloat16", {"avx2": True}, "auto"),
        ("float32", {"amx_bf16": True}, "float32"),
    ],
)
def test_the_dtype_follows_the_processor_or_the_setting(
    model: str, monkeypatch: pytest.MonkeyPatch, units: CpuUnits, capabilities: dict[str, bool], dtype: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    args = serve.command_line(Settings(cpu_units=units), model, "base", [], is_demo=False).args
    assert args.dtype == dtype
    assert args.enforce_eager is True


@pytest.mark.parametrize("config", [{"quantization_config": {}}, {"text_config": {"quantization_config": {}}}])
def test_float32_is_not_forced_on_packed_weights(model: str, config: dict[str, object]) -> None:
    path = Path(model) / "config.json"
    path.write_text(json.dumps(json.loads(CONFIG) | config))
    args = serve.command_line(Settings(cpu_units="float32"), model, "base", [], is_demo=False).args
    assert args.dtype == "auto"


def test_a_base_from_the_hub_has_two_names(tmp_path: Path) -> None:
    assert serve.base_names("Qwen/Qwen3-0.6B") == ["qwen3-0.6b", "Qwen/Qwen3-0.6B"]
    assert serve.base_names("Qwen/Qwen3-0.6B@main") == ["qwen3-0.6b", "Qwen/Qwen3-0.6B"]
    assert serve.base_names(str(tmp_path)) == [tmp_path.name.lower()]
    assert serve.base_names(None) == [serve.DEMO_NAME]


@pytest.mark.parametrize(
    ("given", "on_cpu", "places"),
    [
        ({}, True, (16, 256)),
        ({}, False, (4, 64)),
        ({"cpu_lora": "stock"}, True, (4, 64)),
        ({"max_loras": 300}, True, (300, 300)),
        ({"max_loras": 2, "max_cpu_loras": 5}, True, (2, 5)),
        ({"max_cpu_loras": 9}, False, (4, 9)),
    ],
)
def test_places_for_adapters_are_as_set_or_as_many_as_are_cheap(
    given: dict[str, object], on_cpu: bool, places: tuple[int, int]
) -> None:
    assert adapter_places(Settings(**given), on_cpu=on_cpu) == places


@pytest.mark.parametrize(("lora", "extension"), [("amalgam", EXTENSION), ("stock", ASKED)])
def test_the_worker_learns_to_read_adapters_with_our_lora_alone(model: str, lora: str, extension: str) -> None:
    assert (
        serve.command_line(Settings(cpu_lora=lora), model, "base", [], is_demo=False).args.worker_extension_cls
        == extension
    )


def test_the_users_flags_win(model: str) -> None:
    flags = ["--dtype", "bfloat16", "--max-loras", "7", "--max-model-len", "77"]
    args = serve.command_line(Settings(max_loras=2, cpu_units="float32"), model, "base", flags, is_demo=True).args
    assert (args.dtype, args.max_loras, args.max_model_len) == ("bfloat16", 7, 77)
    assert args.served_model_name == ["base"]
    assert args.enable_lora is True


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--dtype", "nope"], "--dtype: invalid choice: 'nope' (choose from"),
        (["--seed", "abc"], "--seed: invalid int value: 'abc'"),
        (["--served-model-name"], "--served-model-name: expected at least one argument"),
        (["--structured-outputs-config.backend", "nope"], "--structured-outputs-config: backend: must be 'auto', "),
        (["--compilation-config", "{bad"], "Invalid JSON: key must be a string"),
        (["--enable-auto-tool-choice"], "--enable-auto-tool-choice requires --tool-call-parser"),
        (["--chat-template", "/nowhere/a.jinja"], "(/nowhere/a.jinja) appears path-like, but doesn't exist"),
        (["--sse-keep-alive-interval", "-1"], "must be a non-negative integer"),
        (["--tool-call-parser", "herms"], "--tool-call-parser: vLLM has no parser 'herms'; did you mean 'hermes'?"),
        (["--reasoning-parser", "qwen33"], "--reasoning-parser: vLLM has no parser 'qwen33'; did you mean 'qwen3'?"),
    ],
)
def test_what_vllm_cannot_take_is_one_sentence(model: str, flags: list[str], words: str) -> None:
    with pytest.raises(FlagInvalid) as caught:
        serve.command_line(Settings(), model, "base", flags, is_demo=False)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert "pydantic" not in caught.value.message
