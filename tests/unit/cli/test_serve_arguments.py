"""What `amalgam serve` asks of vLLM: our defaults first, the user's flags last."""

from pathlib import Path

import pytest

from amalgam.cli import serve
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


def test_the_users_flags_win(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "cpu_multiplies_bfloat16", lambda: False)
    flags = ["--dtype", "bfloat16", "--max-loras", "7", "--max-model-len", "77"]
    args = serve.vllm_arguments(Settings(max_loras=2), model, "base", flags, is_demo=True)
    assert (args.dtype, args.max_loras, args.max_model_len) == ("bfloat16", 7, 77)
    assert args.served_model_name == ["base"]
    assert args.enable_lora is True
