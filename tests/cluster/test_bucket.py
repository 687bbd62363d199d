"""Engines whose adapters lie in a bucket: each has copies of its own, and the front needs none to answer with."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.fake_replica import WEIGHTS, digest_of
from tests.cluster.fronts import Cluster, Front, front
from tests.support.object_store import ADDRESS, s3_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "of-a-test", "AWS_SECRET_ACCESS_KEY": "of-a-test", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
async def bucket_front(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """A front whose store is a bucket, and engines that share nothing with it but the address."""
    folder = tmp_path_factory.mktemp("bucket")
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    with s3_server() as endpoint:
        variables = CREDENTIALS | {"AMALGAM_BUCKET": ADDRESS, "AMALGAM_OBJECT_ENDPOINT": endpoint}
        engines = Cluster(cluster.address, folder / "of-engines", variables)
        await asyncio.to_thread(engines.deploy, 2, "bucket")
        try:
            settings = {"store": folder / "of-front", "bucket": ADDRESS, "object_endpoint": endpoint}
            async with front(cluster, folder, **settings) as opened:
                await opened.until_replicas(2)
                yield opened
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            await asyncio.to_thread(cluster.deploy, 2)


async def say(server: Front, model: str) -> str:
    async with server.http() as http:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def copies(folder: Path, digest: str) -> list[Path]:
    return list(folder.glob(f"**/objects/{digest[:2]}/{digest}/{WEIGHTS}"))


async def test_an_engine_copies_what_it_needs_and_the_front_needs_no_copy(bucket_front: Front) -> None:
    await bucket_front.register("sql", 1)
    digest = bucket_front.app.state.amalgam.catalog.snapshot.versions["sql@1"].digest
    weights = (bucket_front.folder / "sources" / "sql" / WEIGHTS).read_bytes()
    assert await say(bucket_front, "sql") == digest_of(weights)
    of_engines, of_front = bucket_front.folder / "of-engines", bucket_front.folder / "of-front"
    assert [path.read_bytes() for path in copies(of_engines, digest)] == [weights], "its home alone has a copy"
    for path in copies(of_front, digest):
        shutil.rmtree(path.parent)
    assert await say(bucket_front, "sql") == digest_of(weights)
    assert not copies(of_front, digest)


async def test_a_blend_is_built_from_copies_of_the_engine(bucket_front: Front) -> None:
    for seed, name in enumerate(("one", "two"), 7):
        await bucket_front.register(name, seed)
    said = await say(bucket_front, "0.5*one + 0.5*two")
    assert said not in (await say(bucket_front, "one"), await say(bucket_front, "two"), "base")
