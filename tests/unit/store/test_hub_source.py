"""hf:// sources against a local stand-in for the hub that speaks the few routes huggingface_hub asks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from amalgam.errors.adapters import PathDenied, SourceNotFound, SourceUnavailable, UnsupportedSource, UploadTooLarge
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.hub_source import HubSource
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.profile_files import MAX_PROFILE_FILE_BYTES
from amalgam.store.sources import sources
from tests.adapter_factory import write_lora
from tests.unit.store.hub_stand_in import REPO, Hub


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


def test_what_says_how_the_adapter_is_asked_comes_along_and_is_not_stored(hub: Hub, tmp_path: Path) -> None:
    said = {"tokenizer_config.json": b'{"chat_template": "{{ messages }}"}', "chat_template.jinja": b"{{ bos_token }}"}
    large = {"generation_config.json": b" " * (MAX_PROFILE_FILE_BYTES + 1)}
    hub.files |= said | large | {"tokenizer.json": b"{}", "checkpoint-1/serving_profile.json": b"{}"}
    with AdapterStore.open(tmp_path / "store").stage() as staging:
        HubSource(hub.url, 1 << 20).fetch(REPO, staging)
        assert staging.profile_files == said
        assert not {path.name for path in staging.folder.iterdir()} & said.keys()
        assert {*said, "tokenizer.json", "generation_config.json", "checkpoint-1/"} <= set(staging.left_out)
    assert not any(path.endswith(("generation_config.json", "/tokenizer.json")) for path in hub.asked)
    assert not any("checkpoint-1" in path for path in hub.asked)


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
