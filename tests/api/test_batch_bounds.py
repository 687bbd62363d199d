"""What of files and batches is refused, and how many bytes of them are kept."""

import asyncio
from typing import Any

import openai
import pytest

from tests.support.batches import CHAT, client_of, running, shared, tenant
from tests.support.keys import make_key
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error

__all__ = ["running", "shared", "tenant"]


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({}, {"file": ("a", b"{}")}, "purpose"),
        ({"purpose": "assistants"}, {"file": ("a", b"{}")}, "purpose"),
        ({"purpose": "batch"}, {"other": ("a", b"{}")}, "body"),
        ({"purpose": "batch"}, {"file": ("a", b"")}, "file"),
        ({"purpose": "batch", "expires_after[seconds]": "60"}, {"file": ("a", b"{}")}, "expires_after[anchor]"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            {"file": ("a", b"{}")},
            "expires_after[seconds]",
        ),
    ],
)
async def test_an_upload_that_is_wrong_says_where(
    running: RunningApp, tenant: str, fields: dict[str, str], files: dict[str, Any], param: str
) -> None:
    async with running.http(await make_key(running, "client", tenant=tenant)) as http:
        error = assert_error(await http.post("/v1/files", data=fields, files=files), 400, "invalid_value")
    assert error["param"] == param


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "/v1/messages"},
        {"completion_window": "1h"},
        {"metadata": {str(n): "x" for n in range(17)}},
        {"metadata": {"a": "x" * 513}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 5}},
        {"input_file_id": 7},
    ],
)
async def test_a_batch_that_cannot_be_is_refused(running: RunningApp, tenant: str, change: dict[str, Any]) -> None:
    body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"} | change
    async with running.http(await make_key(running, "client", tenant=tenant)) as http:
        assert_error(await http.post("/v1/batches", json=body), 400, "invalid_value")


async def test_embeddings_are_refused_where_the_model_has_none(running: RunningApp, tenant: str) -> None:
    body = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    async with running.http(await make_key(running, "client", tenant=tenant)) as http:
        assert (await http.post("/v1/batches", json=body)).status_code in (400, 404, 501)


@pytest.mark.parametrize("whose", ["tenant", "key"])
async def test_stored_bytes_are_limited_before_they_are_kept(running: RunningApp, tenant: str, whose: str) -> None:
    limits = {"stored_bytes": 10_000}
    fields = {"limits": limits} if whose == "key" else {}
    key = await make_key(running, "client", tenant=tenant, **fields)
    if whose == "tenant":
        async with running.http(ADMIN_KEY) as admin:
            changed = await admin.patch(f"/admin/v1/tenants/{tenant}", json={"limits": limits})
            assert changed.status_code == 200
    client = client_of(running, key)
    first = await client.files.create(file=("a", b"x" * 6_000), purpose="batch")
    for size in (4_001, 20_000):
        with pytest.raises(openai.RateLimitError) as refused:
            await client.files.create(file=("b", b"x" * size), purpose="batch")
        assert refused.value.code == "insufficient_quota"
        assert refused.value.response.headers["x-should-retry"] == "false"
    await client.files.create(file=("c", b"x" * 4_000), purpose="batch")
    await client.files.delete(first.id)
    await client.files.create(file=("d", b"x" * 5_999), purpose="batch")


async def test_many_uploads_at_once_never_store_more_than_the_limit(running: RunningApp, tenant: str) -> None:
    client = client_of(running, await make_key(running, "client", limits={"stored_bytes": 10_000}, tenant=tenant))
    calls = [client.files.create(file=("a", b"x" * 3_000), purpose="batch") for _ in range(12)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in outcomes) == 3
    kept = (running.folder / "store" / "files").glob("*/*")
    assert sum(path.stat().st_size == 3_000 for path in kept) == 3


async def test_names_have_no_limit_on_stored_bytes(running: RunningApp, tenant: str) -> None:
    limited = [{"pattern": "acme.*", "limits": {"stored_bytes": 5}}]
    async with running.http(ADMIN_KEY) as admin:
        answer = await admin.post("/admin/v1/tenants", json={"id": tenant, "model_limits": limited})
    assert_error(answer, 400, "invalid_value")
    assert "stored_bytes" in answer.text
