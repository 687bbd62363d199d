"""hf:// sources against a local stand-in for the hub that speaks the few routes huggingface_hub asks."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from amalgam.errors.adapters import PathDenied, SourceNotFound, SourceUnavailable, UnsupportedSource, UploadTooLarge
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.hub_source import HubSource
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.sources import sources
from tests.adapter_factory import write_lora

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "team/colors"


class Hub:
    """One repository at one commit; remembers what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, head=True)

            def do_GET(self) -> None:
                hub.answer(self, head=False)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, head: bool) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(path)
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        name = path.removeprefix(prefix)
        body, status = b'{"error": "not found"}', 404
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/revision/v1"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            body, status = json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode(), 200
        elif path.startswith(prefix) and name in self.files:
            body, status = self.files[name], 200
        request.send_response(status)
        if status == 404:
            request.send_header("X-Error-Code", "RepoNotFound")
        request.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if not head:
            request.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = write_lora(tmp_path / "made", layers=1, hidden=8, heads_kv_dim=4, intermediate=8, rank=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    running = Hub(files | {"README.md": b"# colors", "evil.py": b"raise SystemExit", "adapter_model.bin": b"\x80\x04."})
    yield running
    running.close()


@pytest.mark.parametrize("source", [f"hf://{REPO}", f"hf://{REPO}@v1"])
def test_an_adapters_own_files_are_fetched_and_nothing_else(hub: Hub, tmp_path: Path, source: str) -> None:
    store = AdapterStore.open(tmp_path / "store")
    with store.stage() as staging:
        assert sources([], HubSource(hub.url, 1 << 20)).fetch(source, staging) == "hf"
        assert {path.name for path in staging.folder.iterdir()} == {
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        header = read_peft_folder(staging.folder, None).require(staging.findings)
    assert header.rank == 2
    assert not any("evil" in path or path.endswith(".bin") for path in hub.asked)


@pytest.mark.parametrize(
    "location", ["team", "team/colors/more", "../etc/passwd", "team/../x", "team/colors@../../x", "team/colors?x", ""]
)
def test_what_is_no_repository_is_refused_without_asking(hub: Hub, tmp_path: Path, location: str) -> None:
    with AdapterStore.open(tmp_path / "store").stage() as staging, pytest.raises(PathDenied):
        HubSource(hub.url, 1 << 20).fetch(location, staging)
    assert hub.asked == []


def test_too_large_is_known_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    with AdapterStore.open(tmp_path / "store").stage() as staging, pytest.raises(UploadTooLarge):
        HubSource(hub.url, 100).fetch(REPO, staging)
    assert not any("resolve" in path for path in hub.asked)


def test_an_unknown_repository_and_a_silent_hub_are_told_apart(hub: Hub, tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    with store.stage() as staging, pytest.raises(SourceNotFound):
        HubSource(hub.url, 1 << 20).fetch("team/nothing", staging)
    hub.close()
    with store.stage() as staging, pytest.raises(SourceUnavailable):
        HubSource(hub.url, 1 << 20).fetch(REPO, staging)


def test_without_the_setting_no_hub_is_asked(tmp_path: Path) -> None:
    with AdapterStore.open(tmp_path / "store").stage() as staging, pytest.raises(UnsupportedSource):
        sources([]).fetch(f"hf://{REPO}", staging)
