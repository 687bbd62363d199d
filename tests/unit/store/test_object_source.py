"""Sources in object stores, against a server that speaks S3 over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import ObjectStore, S3Store

from amalgam.errors.adapters import ObjectsDenied, SourceNotFound, SourceUnavailable, UnsupportedSource, UploadTooLarge
from amalgam.errors.settings import SettingRefused
from amalgam.services.adapter_sources import adapter_sources
from amalgam.settings import Settings
from amalgam.store import object_source
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.object_source import object_sources
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.sources import Sources, sources
from amalgam.store.staging import Staging
from tests.adapter_factory import write_lora

PREFIX = "s3://models/team"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an empty store with the bucket ``models``."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    httpx.put(f"http://{host}:{port}/models").raise_for_status()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-a-test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def adapter(s3: str, tmp_path: Path) -> str:
    """The source of an adapter in the store, with what training leaves beside it."""
    folder = write_lora(tmp_path / "made", layers=1, hidden=8, heads_kv_dim=4, intermediate=8, rank=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    beside = {"training_args.bin": b"\x80\x04.", "checkpoint-10/adapter_model.safetensors": b"not read"}
    for name, content in (files | beside).items():
        put(s3, f"team/{tmp_path.name}/{name}", content)
    return f"{PREFIX}/{tmp_path.name}"


def put(s3: str, key: str, content: bytes) -> None:
    store = S3Store("models", endpoint=s3, client_options={"allow_http": True})
    obstore.put(store, key, content)


def fetching(s3: str, max_bytes: int = 1 << 20) -> Sources:
    return sources([], None, object_sources((PREFIX,), s3, max_bytes))


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Staging]:
    with AdapterStore.open(tmp_path / "store").stage() as staging:
        yield staging


@pytest.mark.parametrize("end", ["", "/"])
def test_an_adapters_own_files_are_fetched_and_the_rest_is_named(
    s3: str, adapter: str, staging: Staging, end: str
) -> None:
    assert fetching(s3).fetch(adapter + end, staging) == "s3"
    assert {path.name for path in staging.folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert set(staging.left_out) == {"training_args.bin", "checkpoint-10/"}
    assert read_peft_folder(staging.folder, None).require(staging.findings).rank == 2


def test_what_says_how_the_adapter_is_asked_comes_along_and_is_not_stored(
    s3: str, adapter: str, staging: Staging, tmp_path: Path
) -> None:
    said = {"serving_profile.json": b'{"system_prompt": "Be brief."}', "generation_config.json": b'{"top_k": 5}'}
    for name, content in (said | {"checkpoint-10/chat_template.jinja": b"x"}).items():
        put(s3, f"team/{tmp_path.name}/{name}", content)
    fetching(s3).fetch(adapter, staging)
    assert staging.profile_files == said
    assert {path.name for path in staging.folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert set(staging.left_out) == {*said, "training_args.bin", "checkpoint-10/"}


def test_the_settings_of_a_server_make_it_read_them(s3: str, adapter: str, staging: Staging) -> None:
    settings = Settings(object_sources=PREFIX, object_endpoint=s3)
    assert adapter_sources(settings).fetch(adapter, staging) == "s3"
    assert (staging.folder / "adapter_model.safetensors").stat().st_size > 0


@pytest.mark.parametrize(
    "source",
    [
        *("s3://models", "s3://models/", "s3://models/teams/x", "s3://other/team/x", "s3://models/Team/x", "s3://"),
        *("s3://models/team/../x", "s3://models/team//x", "s3://models/team/./x", "s3://models/team/%2e%2e/x"),
        *("s3://models/team/x?versionId=1", "s3://models/team/x#y", "s3://u:p@models/team/x", "s3://models/team/x\n"),
        *("s3://models/team/x\x00", "s3://models/team/\uff0e\uff0e/x", "s3://models\\team/x", "s3://models/team/ x"),
    ],
)
def test_what_is_not_below_a_prefix_is_refused_without_asking(
    s3: str, staging: Staging, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_source, "from_url", lambda *_, **__: pytest.fail("the store was asked"))
    with pytest.raises(ObjectsDenied):
        fetching(s3).fetch(source, staging)


def test_a_scheme_without_a_prefix_is_not_read(s3: str, staging: Staging) -> None:
    with pytest.raises(UnsupportedSource, match="file, s3"):
        fetching(s3).fetch("gs://models/team/x", staging)


def test_too_large_is_known_before_anything_is_fetched(s3: str, adapter: str, staging: Staging) -> None:
    with pytest.raises(UploadTooLarge):
        fetching(s3, max_bytes=100).fetch(adapter, staging)
    assert not list(staging.folder.iterdir())


def test_nothing_there_and_nothing_of_an_adapter_there_are_not_found(s3: str, staging: Staging) -> None:
    put(s3, "team/notes/readme.txt", b"no adapter")
    for name in ("nothing", "notes"):
        with pytest.raises(SourceNotFound):
            fetching(s3).fetch(f"{PREFIX}/{name}", staging)


def test_an_address_above_many_adapters_is_refused(
    s3: str, adapter: str, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_source, "MOST_LISTED", 3)
    with pytest.raises(ObjectsDenied, match="more than 3 objects"):
        fetching(s3).fetch(PREFIX, staging)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "https://127.0.0.1:9"])
def test_a_store_that_is_not_there_is_told_without_its_address(
    endpoint: str, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_source, "RETRY_S", 1)
    with pytest.raises(SourceUnavailable) as caught:
        fetching(endpoint).fetch(f"{PREFIX}/x", staging)
    assert "127.0.0.1" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_object_that_changes_between_listing_and_fetching_is_not_taken(
    s3: str, adapter: str, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = object_source.listed

    def then_changed(store: ObjectStore) -> tuple[dict[str, str | None], dict[str, int]]:
        found = listed(store)
        put(s3, adapter.removeprefix("s3://models/") + "/adapter_model.safetensors", b"another one")
        return found

    monkeypatch.setattr(object_source, "listed", then_changed)
    with pytest.raises(SourceUnavailable):
        fetching(s3).fetch(adapter, staging)


def test_bytes_that_do_not_add_up_to_what_was_listed_are_not_taken(
    s3: str, adapter: str, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = object_source.listed

    def longer(store: ObjectStore) -> tuple[dict[str, str | None], dict[str, int]]:
        tags, sizes = listed(store)
        return tags, {name: size + 1 for name, size in sizes.items()}

    monkeypatch.setattr(object_source, "listed", longer)
    with pytest.raises(SourceUnavailable, match="are listed"):
        fetching(s3).fetch(adapter, staging)


def test_plain_http_is_spoken_only_where_our_own_setting_says_so(
    s3: str, adapter: str, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_source, "RETRY_S", 1)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, s3)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with pytest.raises(SourceUnavailable):
        fetching("").fetch(adapter, staging)


@pytest.mark.parametrize(
    ("given", "is_right"),
    [
        *(("s3://models", True), ("s3://models/a/b/", True), ("gs://b/p", True), ("az://account/container", True)),
        *(("az://account", False), ("s3://", False), ("models/a", False), ("file:///srv", False)),
        *(("s3://models/../x", False), ("s3://models//x", False), ("s3://models/a?x", False), ("S3://models", False)),
    ],
)
def test_prefixes_are_read_when_the_server_starts(given: str, is_right: bool) -> None:
    if is_right:
        [prefix] = Settings(object_sources=given).adapters.object_sources
        assert object_source.Prefix.parse(prefix).parts
    else:
        with pytest.raises(SettingRefused):
            Settings(object_sources=given)


def test_what_goes_between_listing_and_fetching_is_not_found(
    s3: str, adapter: str, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = object_source.listed

    def then_gone(store: ObjectStore) -> tuple[dict[str, str | None], dict[str, int]]:
        found = listed(store)
        for name in found[0]:
            obstore.delete(store, name)
        return found

    monkeypatch.setattr(object_source, "listed", then_gone)
    with pytest.raises(SourceNotFound):
        fetching(s3).fetch(adapter, staging)
