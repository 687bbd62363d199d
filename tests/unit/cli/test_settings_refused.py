"""Every verb that reads settings refuses what is none, in one line, before it does anything."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from amalgam.__main__ import app
from amalgam.cli import serve
from amalgam.settings import Settings
from tests.adapter_factory import write_lora

VERBS = (
    ["serve"],
    ["worker"],
    ["blender"],
    ["doctor"],
    ["demo", "install"],
    ["demo", "train", "sql"],
    ["demo", "score", "sql"],
)


def told(arguments: list[str], **environment: str) -> str:
    result = CliRunner().invoke(app, arguments, env=environment)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line, *more = result.stderr.strip().splitlines()
    assert more == []
    return line


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_an_unknown_variable(arguments: list[str]) -> None:
    line = told(arguments, AMALGAM_MAX_LORA_RNAK="64")
    assert line.startswith("unknown_setting: AMALGAM_MAX_LORA_RNAK ")
    assert "AMALGAM_MAX_LORA_RANK" in line


def test_a_merge_without_a_server(tmp_path: Path) -> None:
    write_lora(tmp_path / "in", rank=2, layers=1, hidden=8, heads_kv_dim=8, intermediate=8)
    line = told(["merge", "build", str(tmp_path / "in"), "-o", str(tmp_path / "out")], AMALGAM_MAX_DELTA_RATOI="1")
    assert "AMALGAM_MAX_DELTA_RATIO" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_a_file_with_an_unknown_name(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "amalgam.toml"
    path.write_text("[engine]\nmax_lora_rnak = 64\n")
    line = told(arguments, AMALGAM_CONFIG=str(path))
    assert line.startswith("unknown_setting: [engine] max_lora_rnak ")
    assert "max_lora_rank" in line


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_a_value_that_is_not_allowed(arguments: list[str]) -> None:
    assert told(arguments, AMALGAM_MAX_LORA_RANK="1000").startswith("invalid_value: AMALGAM_MAX_LORA_RANK: ")


def test_serve_takes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "amalgam.toml"
    path.write_text("[http]\nport = 81\nhost = '127.0.0.9'\n")
    seen: list[Settings] = []
    monkeypatch.setattr(serve, "run", lambda settings, *_: seen.append(settings))
    result = CliRunner().invoke(app, ["serve", "--config", str(path), "--port", "82"])
    assert result.exit_code == 0, result.output
    assert (seen[0].http.host, seen[0].http.port) == ("127.0.0.9", 82)
    assert told(["serve", "--config", str(tmp_path / "missing.toml")]).startswith("settings_file_unusable: ")
