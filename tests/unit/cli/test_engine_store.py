"""What `amalgam engine` tells engines of the store, and which secrets Ray's processes get."""

from pathlib import Path

import pytest

from amalgam.cli.engine import environment_of_ray, store_variables
from amalgam.settings import Settings

BUCKET = "s3://models/amalgam"
ENVIRONMENT = {"AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "r", "HF_TOKEN": "h", "RAY_AUTH_TOKEN": "t", "PATH": "p"}


def test_copies_of_a_bucket_lie_where_each_machine_has_its_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = store_variables(Settings(store=BUCKET))
    assert told == {"AMALGAM_STORE": BUCKET, "AMALGAM_BUCKET": BUCKET}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AMALGAM_CACHE_DIR", str(tmp_path))
    there = Settings()
    assert there.storage.bucket == BUCKET
    assert tmp_path in there.storage.store.parents


def test_a_folder_that_was_named_is_named_to_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_variables(Settings(store=Path("here"), bucket=BUCKET)) == {"AMALGAM_STORE": str(tmp_path / "here")}
    assert store_variables(Settings(store=Path("here"))) == {"AMALGAM_STORE": str(tmp_path / "here")}


def test_ray_gets_the_buckets_credentials_where_there_is_one_and_no_other_secret() -> None:
    without = environment_of_ray(ENVIRONMENT, Settings())
    assert without == {"AWS_REGION": "r", "RAY_AUTH_TOKEN": "t", "PATH": "p"}
    assert environment_of_ray(ENVIRONMENT, Settings(store=BUCKET)) == without | {"AWS_SECRET_ACCESS_KEY": "s"}
