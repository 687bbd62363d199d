"""Variables of vLLM's own server: its key is taken, and of what has no effect somebody is told."""

import ast
import os
from pathlib import Path

import pytest

from amalgam.api.auth import KeyRing
from amalgam.cli.vllm_environment import WITHOUT_EFFECT, unheeded
from amalgam.settings import Settings, settle

HEEDED = {
    "VLLM_API_KEY", "VLLM_CPU_KVCACHE_SPACE", "VLLM_DISABLE_LOG_LOGO", "VLLM_GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS",
    "VLLM_GPT_OSS_SYSTEM_TOOL_MCP_LABELS", "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB", "VLLM_MAX_COMPLETION_PROMPTS",
    "VLLM_MAX_STOP_STRINGS", "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "VLLM_SKIP_MODEL_NAME_VALIDATION",
    "VLLM_SYSTEM_START_DATE", "VLLM_TOOL_JSON_ERROR_AUTOMATIC_RETRY", "VLLM_USE_EXPERIMENTAL_PARSER_CONTEXT",
}  # fmt: skip
"""Read by vLLM's request classes, handlers and engine, which are what answers here; or asking for what is always so."""


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_whoever_set_one_is_told_what_holds_instead(name: str) -> None:
    [said] = unheeded({name: "1", "VLLM_CPU_KVCACHE_SPACE": "4", "PATH": "/bin"})
    assert said.startswith(f"{name} has no effect here: ")
    assert said.endswith(".")
    for nothing in ("", "0", "false"):
        assert list(unheeded({name: nothing})) == []


def test_the_key_of_vllms_variable_is_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "ak_of_vllm")
    monkeypatch.setenv("AMALGAM_API_KEYS", "ak_one,ak_two")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.access.api_keys] == ["ak_one", "ak_two", "ak_of_vllm"]
    monkeypatch.delenv("AMALGAM_API_KEYS")
    assert len(KeyRing.of(Settings()).api) == 1
    environment = dict(os.environ)
    settle(environment, settings)
    assert "ak_" not in str(environment)
    monkeypatch.setenv("VLLM_API_KEY", "")
    assert KeyRing.of(Settings()).open


def test_every_variable_of_vllms_front_end_is_known() -> None:
    """A release that reads another one shows here, so that somebody decides about it."""
    vllm = pytest.importorskip("vllm")
    root = Path(vllm.__file__).parent / "entrypoints"
    read = set()
    for part in ("serve/middleware", "serve/utils", "launchers", "openai", "anthropic", "serve/lora", "serve/engine"):
        for path in (root / part).rglob("*.py"):
            read |= {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "envs"
            }
    assert "VLLM_API_KEY" in read
    assert read - WITHOUT_EFFECT.keys() == HEEDED
