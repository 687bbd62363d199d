"""A server started as vLLM's own would be, with flags of its front end: each has its effect."""

import ssl
from pathlib import Path

import httpx
import pytest

from tests.adapter_factory import write_lora
from tests.certificates import write_certificate
from tests.e2e.conftest import ADMIN_KEY, API_KEY, start_server, stop_server

pytestmark = pytest.mark.slow


def test_flags_of_vllms_front_end_have_their_effect(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path / "tls")
    folder = write_lora(tmp_path / "adapters" / "flagged", rank=2, seed=5)
    running = start_server(
        tmp_path, "--", "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--root-path", "/llm",
        "--lora-modules", f"flagged={folder}", "--api-key", "ak_flag", "--allowed-origins", '["https://chat.example"]',
        AMALGAM_REGISTER_DEMO="false",
    )  # fmt: skip
    try:
        assert running.url.startswith("https://")
        with pytest.raises(httpx.TransportError):
            httpx.get(running.url.replace("https", "http") + "/livez", timeout=10)
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=running.url, verify=trust, timeout=120) as session:
            chat = {"model": "flagged", "messages": [{"role": "user", "content": "Say one word."}], "max_tokens": 2}
            for path, given in (("/v1", "ak_flag"), ("/llm/v1", API_KEY)):
                headers = {"Authorization": f"Bearer {given}", "Origin": "https://chat.example"}
                answer = session.post(f"{path}/chat/completions", json=chat, headers=headers)
                assert (answer.status_code, answer.json()["model"]) == (200, "flagged@1"), answer.text
                assert answer.headers["access-control-allow-origin"] == "https://chat.example"
            shown = session.get("/admin/v1/adapters/flagged", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
            assert shown.json()["default_version"] == 1
            assert session.get("/health").status_code == 200
        # What the processes of the engine, the merge worker and the blend process can read of their environment.
        for environment in _environments(running.process.pid):
            assert b"ak_test" not in environment
    finally:
        assert stop_server(running.process) == 0, "".join(running.log[-40:])


def _environments(parent: int) -> list[bytes]:
    """Of everything that a server has started, at whatever depth; its own is what it was started with."""
    found: list[bytes] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append((entry.parent / "environ").read_bytes())
                found += _environments(int(entry.parent.name))
        except OSError:
            continue
    assert found or parent != 0
    return found
