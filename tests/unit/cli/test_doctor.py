"""`amalgam doctor`: each fault is found, named in words, and turns the exit code."""

import importlib.metadata
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from amalgam.cli import doctor
from amalgam.cli.doctor_model import check_model
from amalgam.engine.cpu.plugin import PLUGINS
from amalgam.settings import Settings
from tests.support.object_store import ADDRESS, give_credentials, s3_server


def verdicts(findings: object) -> list[tuple[str, str]]:
    return [(finding.verdict, finding.text) for finding in findings]  # type: ignore[attr-defined]


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ((verdict, words),) = verdicts(doctor.check_port(Settings(port=port)))
    assert verdict == "error"
    assert str(port) in words
    assert "--port" in words


def test_a_free_port_is_fine() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert [verdict for verdict, _ in verdicts(doctor.check_port(Settings(port=port)))] == ["ok"]


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    ((verdict, words),) = verdicts(doctor.check_store(Settings(store=blocked / "store")))
    assert verdict == "error"
    assert "AMALGAM_STORE" in words
    assert verdicts(doctor.check_store(Settings(store=tmp_path / "new")))[0][0] != "error"


def test_an_object_store_is_asked_whether_it_keeps_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    give_credentials(monkeypatch)
    assert verdicts(doctor.check_bucket(Settings())) == []
    with s3_server() as endpoint:
        found = verdicts(doctor.check_bucket(Settings(bucket=ADDRESS, object_endpoint=endpoint)))
    assert [verdict for verdict, _ in found] == ["ok", "warning"]
    ((verdict, words),) = verdicts(doctor.check_bucket(Settings(bucket=ADDRESS, object_endpoint="http://127.0.0.1:9")))
    assert (verdict, "127.0.0.1" in words) == ("error", False)


@pytest.mark.parametrize(
    ("rank", "slots", "kept", "expected"),
    [
        (32, 4, 8, "ok"),
        (33, 4, 8, "error"),
        (32, 4, 2, "error"),
        (32, None, None, "ok"),
        (32, 4, None, "ok"),
        (32, None, 1, "ok"),
    ],
)
def test_limits_that_vllm_would_refuse_are_named(rank: int, slots: int | None, kept: int | None, expected: str) -> None:
    settings = Settings(max_lora_rank=rank, max_loras=slots, max_cpu_loras=kept)
    assert [verdict for verdict, _ in verdicts(doctor.check_lora(settings))] == [expected]


def test_a_model_folder_is_read(tmp_path: Path) -> None:
    assert verdicts(check_model(tmp_path))[0][0] == "error"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    ((verdict, words),) = verdicts(check_model(tmp_path))
    assert (verdict, "tokenizer" in words) == ("error", True)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert verdicts(check_model(tmp_path))[0][0] == "ok"


def test_an_engine_that_does_not_import_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", ("-c", "raise RuntimeError('operator torchvision::nms does not exist')"))
    ((verdict, words),) = verdicts(doctor.check_engine())
    assert verdict == "error"
    assert "torchvision::nms" in words


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("2.13.0+cpu 0.32.0 cpu 0", "ok"),
        ("2.13.0 0.31.0 cpu 0", "error"),
        ("2.13.0 0.32.0 none 0", "error"),
        ("2.14.0 0.33.0 none 0", "error"),
        ("2.14.0 0.33.0 cuda 0", "error"),
        ("2.14.0 0.33.0 cuda 1", "ok"),
        ("2.13.0 0.32.0 cuda 1", "error"),
        ("2.13.0+cpu 0.33.0 cpu 0", "error"),
    ],
)
def test_torch_build_and_platform_are_judged(monkeypatch: pytest.MonkeyPatch, printed: str, expected: str) -> None:
    monkeypatch.setattr(doctor, "PROBE", ("-c", f"print('some warning'); print('{printed}')"))
    worst = "error" if any(verdict == "error" for verdict, _ in verdicts(doctor.check_engine())) else "ok"
    assert worst == expected


def test_what_is_installed_is_asked_for_and_can_be_read() -> None:
    from vllm import __version__

    assert f"{__version__} on" in " ".join(words for _, words in verdicts(doctor.check_engine()))


def test_an_installation_that_does_not_name_our_plugins_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    ((verdict, words),) = verdicts(doctor.check_plugins())
    assert verdict == "error"
    assert "install Amalgam again" in words
    named = [SimpleNamespace(value=value) for value in PLUGINS]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: named)
    assert [verdict for verdict, _ in verdicts(doctor.check_plugins())] == ["ok"]
