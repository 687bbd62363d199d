"""``file://`` reads below its roots and nowhere else, whatever the path is made of."""

import os
from pathlib import Path

import pytest

from amalgam.errors.adapters import PathDenied, SourceNotFound, UnsupportedSource, UploadTooLarge
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.sources import sources
from tests.unit.store.tiny_base import fitting_adapter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one adapter, and a secret beside it."""
    root = tmp_path / "root"
    fitting_adapter(root / "sql")
    fitting_adapter(tmp_path / "secret")
    fitting_adapter(tmp_path / "root-twin")
    return root


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore.open(tmp_path / "store")


def fetch(store: AdapterStore, root: Path, source: str, max_bytes: int | None = None) -> tuple[list[str], list[str]]:
    """Names fetched, and what was left out."""
    with store.stage(max_bytes=max_bytes) as staging:
        assert sources([root]).fetch(source, staging) == "file"
        assert staging.findings == ()
        return sorted(os.listdir(staging.folder)), list(staging.left_out)


BOTH = ["adapter_config.json", "adapter_model.safetensors"]


class TestAllowed:
    @pytest.mark.parametrize("form", ["file://{}/sql", "file://{}/sql/", "file://localhost{}/sql", "file://{}/%73ql"])
    def test_a_folder_below_the_root(self, form: str, root: Path, store: AdapterStore) -> None:
        assert fetch(store, root, form.format(root)) == (BOTH, [])

    def test_the_root_itself(self, root: Path, store: AdapterStore) -> None:
        assert fetch(store, root / "sql", f"file://{root}/sql") == (BOTH, [])

    def test_bytes_are_copied_exactly(self, root: Path, store: AdapterStore) -> None:
        with store.stage() as staging:
            sources([root]).fetch(f"file://{root}/sql", staging)
            for name in BOTH:
                assert (staging.folder / name).read_bytes() == (root / "sql" / name).read_bytes()

    def test_blanks_and_letters_of_any_script(self, root: Path, store: AdapterStore) -> None:
        fitting_adapter(root / "mein Lora" / "größe.v1")
        assert fetch(store, root, f"file://{root}/mein%20Lora/größe.v1") == (BOTH, [])
        assert fetch(store, root, f"file://{root}/mein Lora/gr%C3%B6%C3%9Fe.v1") == (BOTH, [])

    def test_a_root_that_is_a_link_was_configured_so(self, root: Path, store: AdapterStore, tmp_path: Path) -> None:
        (tmp_path / "alias").symlink_to(root)
        assert fetch(store, tmp_path / "alias", f"file://{tmp_path}/alias/sql") == (BOTH, [])
        assert fetch(store, tmp_path / "alias", f"file://{root}/sql") == (BOTH, [])

    def test_other_files_and_folders_are_left_out_unopened(self, root: Path, store: AdapterStore) -> None:
        (root / "sql" / "checkpoint-1").mkdir()
        (root / "sql" / "tokenizer.json").write_text("{}")
        (root / "sql" / "train.py").write_text("")
        os.mkfifo(root / "sql" / "optimizer.pt")
        (root / "sql" / "notes").symlink_to(root.parent / "secret")
        others = ["checkpoint-1/", "notes", "optimizer.pt", "tokenizer.json", "train.py"]
        assert fetch(store, root, f"file://{root}/sql") == (BOTH, others)


class TestLinks:
    """Links that stay below the root are followed once."""

    @pytest.fixture
    def snapshot(self, root: Path) -> Path:
        """A hub cache's folder: files are links into ``blobs``, and ``latest`` is a link to the snapshot."""
        repo = root / "models--team--sql"
        snapshot = repo / "snapshots" / "0123abcd"
        snapshot.mkdir(parents=True)
        (repo / "blobs").mkdir()
        for number, name in enumerate(BOTH):
            (root / "sql" / name).rename(repo / "blobs" / f"{number:064x}")
            (snapshot / name).symlink_to(Path("../../blobs") / f"{number:064x}")
        (repo / "latest").symlink_to("snapshots/0123abcd")
        return snapshot

    @pytest.mark.parametrize("place", ["snapshots/0123abcd", "latest"])
    def test_a_hub_caches_snapshot(self, place: str, snapshot: Path, root: Path, store: AdapterStore) -> None:
        assert fetch(store, root, f"file://{root}/models--team--sql/{place}") == (BOTH, [])

    def test_absolute_links_by_either_name_of_the_root(self, root: Path, store: AdapterStore, tmp_path: Path) -> None:
        (tmp_path / "alias").symlink_to(root)
        (root / "sql2").symlink_to(root / "sql")
        (root / "sql3").symlink_to(tmp_path / "alias" / "sql")
        for name in ("sql2", "sql3"):
            assert fetch(store, tmp_path / "alias", f"file://{root}/{name}") == (BOTH, [])

    def test_files_are_those_that_the_links_lead_to(self, snapshot: Path, root: Path, store: AdapterStore) -> None:
        with store.stage() as staging:
            sources([root]).fetch(f"file://{snapshot}", staging)
            for name in BOTH:
                assert (staging.folder / name).read_bytes() == (snapshot / name).read_bytes()

    @pytest.mark.parametrize("target", ["../../secret", "../../../../../../etc", "/etc", "{outside}", "..", "../.."])
    def test_links_that_leave_are_denied(self, target: str, root: Path, store: AdapterStore) -> None:
        (root / "deep").mkdir()
        (root / "deep" / "sql").symlink_to(target.format(outside=root.parent / "secret"))
        with pytest.raises(PathDenied) as caught:
            fetch(store, root, f"file://{root}/deep/sql")
        assert str(root) not in caught.value.message

    @pytest.mark.parametrize("target", ["../../secret/{}", "{outside}/{}"])
    def test_links_of_files_that_leave_are_denied(self, target: str, root: Path, store: AdapterStore) -> None:
        name = "adapter_model.safetensors"
        (root / "sql" / name).unlink()
        (root / "sql" / name).symlink_to(target.replace("{outside}", str(root.parent / "secret")).format(name))
        with pytest.raises(PathDenied, match="out of the root"):
            fetch(store, root, f"file://{root}/sql")

    def test_chains_are_denied(self, root: Path, store: AdapterStore) -> None:
        (root / "one").symlink_to("sql")
        (root / "two").symlink_to("one")
        (root / "three").symlink_to("one/../sql")
        with pytest.raises(PathDenied, match="another"):
            fetch(store, root, f"file://{root}/two")
        assert fetch(store, root, f"file://{root}/three") == (BOTH, [])
        (root / "loop").symlink_to("loop")
        with pytest.raises(PathDenied):
            fetch(store, root, f"file://{root}/loop")

    def test_a_chain_inside_the_folder_is_denied(self, root: Path, store: AdapterStore) -> None:
        name = "adapter_model.safetensors"
        (root / "sql" / name).rename(root / "blob")
        (root / "middle").symlink_to("blob")
        (root / "sql" / name).symlink_to("../middle")
        with pytest.raises(PathDenied, match="another"):
            fetch(store, root, f"file://{root}/sql")

    def test_a_link_to_nothing_is_not_found(self, root: Path, store: AdapterStore) -> None:
        (root / "sql" / "adapter_config.json").unlink()
        (root / "sql" / "adapter_config.json").symlink_to("../gone")
        with pytest.raises(SourceNotFound):
            fetch(store, root, f"file://{root}/sql")


class TestDenied:
    @pytest.mark.parametrize(
        "path",
        [
            "/../secret",
            "/sql/../../secret",
            "/./sql",
            "//sql",
            "/%2e%2e/secret",
            "/%2E%2E/secret",
            "/.%2e/secret",
            "/..%2fsecret",
            "/sql%2f..%2f..%2fsecret",
            "/%252e%252e/secret",
            "/..%5csecret",
            "/..\\secret",
            "/sql\0",
            "/sql%00",
            "/sql%0a",
            "/sql\n",
            "/\u2024\u2024/secret",
            "/\u2025/secret",
            "/\uff0e\uff0e/secret",
            "/sql\uff0f..",
            "/\u2026",
            "/\u202e/sql",
            "/%ff%fe",
            "-twin",
            "/" + "x" * 4096,
        ],
    )
    def test_paths_that_lead_or_pretend_to_lead_out(self, path: str, root: Path, store: AdapterStore) -> None:
        with pytest.raises(PathDenied) as caught:
            fetch(store, root, f"file://{root}{path}")
        assert caught.value.status == 403
        assert caught.value.code == "path_denied"
        assert str(root) not in caught.value.message

    @pytest.mark.parametrize(
        "source", ["file:///", "file:///etc", "file://", "file://etc", "file://host/etc", "file://.."]
    )
    def test_other_places(self, source: str, root: Path, store: AdapterStore) -> None:
        with pytest.raises(PathDenied):
            fetch(store, root, source)

    def test_outside_the_root_existing_and_missing_look_the_same(self, root: Path, store: AdapterStore) -> None:
        messages = set()
        for name in ("secret", "nothing"):
            with pytest.raises(PathDenied) as caught:
                fetch(store, root, f"file://{root.parent}/{name}")
            messages.add(caught.value.message)
        assert len(messages) == 1

    def test_without_roots_nothing_is_allowed(self, root: Path, store: AdapterStore) -> None:
        with store.stage() as staging, pytest.raises(PathDenied):
            sources([]).fetch(f"file://{root}/sql", staging)

    def test_a_folder_that_becomes_a_link_while_it_is_opened(
        self, root: Path, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The check and the opening are two steps; the opening itself must refuse a link too."""
        monkeypatch.setattr("amalgam.store.sources.is_link", lambda *_: False)
        (root / "sql2").symlink_to(root.parent / "secret")
        with pytest.raises(SourceNotFound):
            fetch(store, root, f"file://{root}/sql2")

    def test_a_named_pipe_does_not_hang_the_server(self, root: Path, store: AdapterStore) -> None:
        (root / "sql" / "README.md").unlink(missing_ok=True)
        os.mkfifo(root / "sql" / "README.md")
        with pytest.raises(PathDenied, match="regular file"):
            fetch(store, root, f"file://{root}/sql")


def test_a_folder_that_is_not_there(root: Path, store: AdapterStore) -> None:
    for name in ("nothing", "sql/nothing", "sql/adapter_config.json"):
        with pytest.raises(SourceNotFound) as caught:
            fetch(store, root, f"file://{root}/{name}")
        assert caught.value.status == 404


def test_the_size_limit_holds(root: Path, store: AdapterStore) -> None:
    with pytest.raises(UploadTooLarge):
        fetch(store, root, f"file://{root}/sql", max_bytes=1000)


@pytest.mark.parametrize(
    "source", ["s3://bucket/x", "http://x/y", "/srv/adapters/x", "", "FILE:///x", "file:/x", "x" * 9999]
)
def test_schemes_that_are_not_in_the_table(source: str, root: Path, store: AdapterStore) -> None:
    with store.stage() as staging, pytest.raises(UnsupportedSource) as caught:
        sources([root]).fetch(source, staging)
    assert "file" in caught.value.message
    assert len(caught.value.message) < 200
