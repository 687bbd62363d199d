"""A backup is the database, then the bucket; what is restored of both answers as before, on another host."""

import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import obstore
import pytest
from obstore.store import S3Store

from tests.support.object_store import ADDRESS, BUCKET, give_credentials, names_in, objects_of, s3_server
from tests.support.postgres import cluster
from tests.support.replicas import fresh_database, replica
from tests.support.running_app import push, write_adapter

pytestmark = pytest.mark.timeout(300)


async def test_what_was_saved_is_served_from_another_database_and_another_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_credentials(monkeypatch)
    with cluster(tmp_path / "pg" / "data") as postgres, s3_server() as objects:
        address = f"postgresql://amalgam@127.0.0.1:{postgres.port}"
        first, second = await fresh_database(postgres), await fresh_database(postgres)
        settings = {"object_endpoint": objects}
        async with AsyncExitStack() as stack:
            opening = replica(
                tmp_path / "a", tmp_path / "a" / "copies", f"{address}/{first}", bucket=ADDRESS, **settings
            )
            before = await stack.enter_async_context(opening)
            for seed, name in enumerate(("sql", "json")):
                made = await push(before.admin, name, write_adapter(tmp_path / name, seed=seed))
                assert made.status_code == 201, made.text
            await before.admin.put("/admin/v1/aliases/best", json={"targets": [{"model": "json@1", "weight": 1}]})
            saved, programs = tmp_path / "saved.dump", (postgres.programs / "initdb").resolve().parent
            with saved.open("wb") as file:
                subprocess.run([programs / "pg_dump", "-Fc", f"{address}/{first}"], stdout=file, check=True)
            # Written after the database was saved: files without rows, which a sweep removes.
            assert (await push(before.admin, "late", write_adapter(tmp_path / "late", seed=9))).status_code == 201
            httpx.put(f"{objects}/restored").raise_for_status()
            restored = S3Store("restored", prefix="team", endpoint=objects, client_options={"allow_http": True})
            for name in names_in(objects):
                obstore.put(restored, name, obstore.get(objects_of(objects), name).bytes())

        with saved.open("rb") as file:
            command = [str(programs / "pg_restore"), "--no-owner", "-d", f"{address}/{second}"]
            subprocess.run(command, stdin=file, check=True)
        for name in names_in(objects):
            obstore.delete(objects_of(objects), name)
        elsewhere = ADDRESS.replace(BUCKET, "restored")
        opening = replica(
            tmp_path / "b", tmp_path / "b" / "copies", f"{address}/{second}", bucket=elsewhere, **settings
        )
        async with opening as after:
            for name in ("sql", "json@1", "best"):
                assert (await after.ask(name)).status_code == 200
            assert (await after.ask("late")).status_code == 404
            for name in ("sql", "json"):
                assert (await after.admin.post(f"/admin/v1/adapters/{name}:verify")).status_code == 200
