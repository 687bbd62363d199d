"""What `amalgam serve` asks of vLLM: our defaults first, the user's flags last."""

from pathlib import Path

import pytest

from amalgam.cli import serve
from amalgam.engine.cpu_lora_preload import EXTENSION
from amalgam.settings import Settings

CONFIG = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(CONFIG)
    return str(tmp_path)


@pytest.mark.parametrize(("has_units", "dtype"), [(True, "auto"), (False, "float32")])
def test_the_dtype_follows_the_processor(
    model: str, monkeypatch: pytest.MonkeyPatch, has_units: bool, dtype: str
) -> None:
    monkeypatch.setattr(serve, "cpu_multiplies_bfloat16", lambda: has_units)
    args = serve.vllm_arguments(Settings(), model, "base", [], is_demo=False)
    assert args.dtype == dtype
    assert args.enforce_eager is True


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
    assert serve.lora_places(Settings(**given), on_cpu=on_cpu) == places


@pytest.mark.parametrize(("lora", "extension"), [("amalgam", EXTENSION), ("stock", "")])
def test_the_worker_learns_to_read_adapters_with_our_lora_alone(model: str, lora: str, extension: str) -> None:
    assert (
        serve.vllm_arguments(Settings(cpu_lora=lora), model, "base", [], is_demo=False).worker_extension_cls
        == extension
    )


def test_the_users_flags_win(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "cpu_multiplies_bfloat16", lambda: False)
    flags = ["--dtype", "bfloat16", "--max-loras", "7", "--max-model-len", "77"]
    args = serve.vllm_arguments(Settings(max_loras=2), model, "base", flags, is_demo=True)
    assert (args.dtype, args.max_loras, args.max_model_len) == ("bfloat16", 7, 77)
    assert args.served_model_name == ["base"]
    assert args.enable_lora is True
