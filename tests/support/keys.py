"""Keys for tests of the application: made over HTTP, as an operator makes them."""

from typing import Any

import httpx

from tests.support.running_app import ADMIN_KEY, RunningApp


async def make_tenant(running_app: RunningApp, tenant: str, **fields: Any) -> None:
    """A tenant, unless it is there."""
    async with running_app.http(ADMIN_KEY) as admin:
        made = await admin.post("/admin/v1/tenants", json={"id": tenant} | fields)
        assert made.status_code in (201, 409), made.text


async def make_key(running_app: RunningApp, role: str = "client", *models: str, **fields: Any) -> str:
    """A new key of that role and those names, of the tenant ``acme`` unless another is given."""
    body: dict[str, Any] = {"tenant": "acme", "role": role} | ({"models": models} if models else {}) | fields
    await make_tenant(running_app, body["tenant"])
    async with running_app.http(ADMIN_KEY) as admin:
        made = await admin.post("/admin/v1/keys", json=body)
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


def key_id(token: str) -> str:
    """The public half of a key."""
    return token.split("_")[1]


def holder(running_app: RunningApp, token: str) -> httpx.AsyncClient:
    """A client with that key."""
    return running_app.http(token)
