"""`amalgam export`: what a person types, and what comes back."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from amalgam.__main__ import app
from amalgam.store.export_folders import ExportFolders
from tests.unit.store.tiny_base import fitting_adapter, write_base


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    write_base(root / "base")
    fitting_adapter(root / "a", seed=1)
    fitting_adapter(root / "b", seed=2, rank=2, modules=("q_proj",))
    fitting_adapter(root / "other", hidden=32)
    (root / "bare").mkdir()
    (root / "bare" / "config.json").write_text((root / "base" / "config.json").read_text())
    return root


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])


def test_a_folder_is_written_and_never_again(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (f"ties({folders}/a, 0.5*{folders}/b; density=0.5)", "--base", folders / "base", "-o", out)
    done = run(*arguments, "--dtype", "float16", "--rank", "4")
    assert done.exit_code == 0, done.output
    assert "14 modules changed" in " ".join(done.output.split())
    record = ExportFolders(tmp_path).get("out")
    assert (record.dtype, record.recipe["method"], record.recipe["output"]["rank"]) == ("float16", "ties", 4)
    assert set(record.inputs) == {f"{folders}/a", f"{folders}/b"}
    again = run(*arguments)
    assert (again.exit_code, again.stderr.split(":")[0]) == (2, "name_taken")
    assert ExportFolders(tmp_path).get("out") == record


@pytest.mark.parametrize(("arguments", "code"), [
    (("{f}/other", "--base", "{f}/base", "-o", "x"), "shape_mismatch"),
    (("{f}/a", "--base", "{f}/nowhere", "-o", "x"), "base_model_unreadable"),
    (("{f}/a", "--base", "{f}/base", "-o", "a b"), "invalid_name"),
    (("{f}/a +", "--base", "{f}/base", "-o", "x"), "invalid_expression"),
    (("nowhere", "--base", "{f}/base", "-o", "x"), "invalid_value"),
    (("{f}/a", "--base", "{f}/base", "-o", "x", "--max-shard", "1KiB"), "invalid_value"),
])  # fmt: skip
def test_errors_are_a_code_and_a_sentence(
    folders: Path, tmp_path: Path, arguments: tuple[str, ...], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*(argument.format(f=folders) for argument in arguments))
    assert done.exit_code == 2
    assert done.stderr.strip().startswith(f"{code}: "), done.stderr
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_base_without_safetensors_is_refused(folders: Path, tmp_path: Path) -> None:
    config = {"num_attention_heads": 2, "num_key_value_heads": 1}
    path = folders / "bare" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    done = run(f"{folders}/a", "--base", folders / "bare", "-o", tmp_path / "x")
    assert done.stderr.strip().startswith("base_not_exportable: "), done.stderr
