"""An application on which two tenants have everything there is: what one of them may see is looked for in the other's.

Whatever is the foreign tenant's has `FOREIGN` in its name, and nothing else has.
"""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.keys import make_key, make_tenant
from tests.support.running_app import ADMIN_KEY, RunningApp, push, write_adapter

FOREIGN = "zeta"
ABSENT = "yota"
"""In place of the foreign word: of a thing that is not there."""
OWN = "acme"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
ITEMS = [{"task": "all", "prompt": "say 1", "reference": "1"}]


@dataclass
class TwoTenants:
    """What was made, by kind and owner."""

    running_app: RunningApp
    jobs: dict[str, list[str]] = field(default_factory=dict)
    evaluations: dict[str, list[str]] = field(default_factory=dict)
    blends: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Keys of the own tenant: by what they may do."""
    foreign_keys: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    batches: dict[str, list[str]] = field(default_factory=dict)


async def furnish(running_app: RunningApp) -> TwoTenants:
    """Make all of it, as the operator."""
    made = TwoTenants(running_app)
    async with running_app.http(ADMIN_KEY) as admin:
        for tenant in (OWN, FOREIGN):
            await make_tenant(running_app, tenant, name=f"The {tenant}")
        for seed, name in enumerate(("acme.sql", "acme.json", "zeta-one", "zeta-two", "zeta.acme.x")):
            pushed = await push(admin, name, write_adapter(running_app.sources / name, seed=seed))
            assert pushed.status_code == 201, pushed.text
        await _merges(admin, made)
        await _aliases(admin)
        await _profiles(admin)
        await _evaluations(admin, made)
        await _exports(admin, made)
        await _asked(admin, made)
    shown = {"models": ["acme.*", "base"]}
    for role in ("client", "publisher", "reader"):
        made.keys[role] = await make_key(running_app, role, **shown)
        made.foreign_keys[role] = await make_key(running_app, role, tenant=FOREIGN, name="zeta's", models=["zeta*"])
    made.keys["own blends"] = await make_key(running_app, "publisher", blends="own", **shown)
    made.keys["no blends"] = await make_key(running_app, "publisher", blends="none", **shown)
    made.keys["one version"] = await make_key(running_app, "publisher", "acme.sql@1")
    for owner, key, model in (
        (OWN, made.keys["client"], "acme.sql"),
        (FOREIGN, made.foreign_keys["client"], "zeta-one"),
    ):
        async with running_app.http(key) as http:
            await _batches(http, made, owner, model)
    return made


async def _batches(http: httpx.AsyncClient, made: TwoTenants, owner: str, model: str) -> None:
    """A batch of the tenant, and its files."""
    asked = {"custom_id": owner, "method": "POST", "url": "/v1/chat/completions", "body": CHAT | {"model": model}}
    files = {"file": (f"{owner}.jsonl", json.dumps(asked).encode())}
    file = (await http.post("/v1/files", data={"purpose": "batch"}, files=files)).json()
    body = {"input_file_id": file["id"], "endpoint": asked["url"], "completion_window": "24h"}
    batch = await _submitted(http, "/v1/batches", body | {"metadata": {"of": owner}})
    async with asyncio.timeout(120):
        while (ended := (await http.get(f"/v1/batches/{batch['id']}")).json())["status"] != "completed":
            await asyncio.sleep(0.05)
    made.files[owner] = [file["id"], ended["output_file_id"]]
    made.batches[owner] = [batch["id"]]


async def _submitted(admin: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await admin.post(path, json=body)
    assert answer.status_code in (200, 201, 202), answer.text
    found: dict[str, Any] = answer.json()
    return found


async def _merges(admin: httpx.AsyncClient, made: TwoTenants) -> None:
    """Merges within each tenant, and some across: the results are each one's, and say where they come from."""
    made.jobs = {OWN: [], FOREIGN: []}
    for name, expression, owner in (
        ("acme.mix", "acme.sql + 0.25*acme.json", OWN),
        ("zeta-mix", "zeta-one + 0.5*zeta-two", FOREIGN),
        ("zeta-same", "acme.sql + acme.json", FOREIGN),
        ("acme.across", "acme.sql + 0.5*zeta-one", FOREIGN),
        ("acme.deeper", "acme.across + 0.5*acme.json", OWN),
    ):
        answer = await _submitted(admin, "/admin/v1/merges?wait_s=120", {"name": name, "expression": expression})
        assert answer["model"] == f"{name}@1"
        job = (await admin.get("/admin/v1/jobs?limit=1")).json()["data"][0]
        assert job["name"] == name
        made.jobs[owner].append(job["id"])


async def _aliases(admin: httpx.AsyncClient) -> None:
    for name, *targets in (
        ("acme.live", "acme.sql"),
        ("acme.via", "zeta-one@1"),
        ("acme.weighted", "acme.sql", "zeta-one", "zeta-two@1"),
        ("acme.viablend", "zeta-one + 0.75*zeta-two"),
        ("zeta-live", "zeta-one"),
        ("zeta-onto", "acme.json"),
    ):
        body = {"targets": [{"model": target, "weight": 1} for target in targets]}
        assert (await admin.put(f"/admin/v1/aliases/{name}", json=body)).status_code == 201
    # By user, so that who names one draws as before.
    experiment = {"metric": "thumb", "assignment": "user", "shadows": ["zeta.acme.x"]}
    assert (await admin.put("/admin/v1/aliases/acme.weighted/experiment", json=experiment)).status_code == 200
    for target in ("zeta-two", "acme.json"):
        body = {"targets": [{"model": target, "weight": 1}]}
        assert (await admin.put("/admin/v1/aliases/acme.live", json=body)).status_code == 200


async def _profiles(admin: httpx.AsyncClient) -> None:
    for name in ("acme.sql", "zeta-one"):
        put = await admin.put(
            f"/admin/v1/adapters/{name}/versions/1/profile", json={"system_prompt": f"You are {name}."}
        )
        assert put.status_code == 200, put.text


async def _evaluations(admin: httpx.AsyncClient, made: TwoTenants) -> None:
    made.evaluations = {OWN: [], FOREIGN: []}
    common = {"items": ITEMS, "metrics": ["exact_match"], "max_tokens": 2}
    for owner, *targets in (
        (OWN, "acme.sql", "tiny"),
        (FOREIGN, "zeta-one", "zeta-live"),
        (FOREIGN, "acme.sql", "zeta-two"),
        (FOREIGN, "acme.weighted"),
        (FOREIGN, "acme.via"),
    ):
        answer = await _submitted(admin, "/admin/v1/evaluations", {"targets": targets, "label": owner} | common)
        made.evaluations[owner].append(answer["id"])
    for owner, adapters in ((OWN, ("acme.sql", "acme.json")), (FOREIGN, ("zeta-one", "zeta-two"))):
        body = {
            "tasks": {adapter: {"adapter": adapter} for adapter in adapters},
            "items": [{"task": adapter, "prompt": "say 1", "reference": "1"} for adapter in adapters],
            "search": {"kind": "grid", "weights": {adapters[0]: [0.5, 1.5], adapters[1]: [1.0]}},
        }
        made.evaluations[owner].append((await _submitted(admin, "/admin/v1/sweeps", body))["id"])


async def _exports(admin: httpx.AsyncClient, made: TwoTenants) -> None:
    for owner, name, expression in (
        (OWN, "acme.whole", "acme.sql"),
        (FOREIGN, "zeta-whole", "zeta-one"),
        (FOREIGN, "acme.mixed", "acme.sql + 0.125*zeta-one"),
    ):
        answer = await _submitted(admin, "/admin/v1/exports", {"name": name, "expression": expression})
        made.jobs[owner].append(answer["job"]["id"])
    for job in (await admin.get("/admin/v1/jobs?limit=500")).json()["data"]:
        async with asyncio.timeout(120):
            while (await admin.get(f"/admin/v1/jobs/{job['id']}")).json()["state"] not in ("published", "failed"):
                await asyncio.sleep(0.05)


async def _asked(admin: httpx.AsyncClient, made: TwoTenants) -> None:
    """Residents of both, and blends that others' requests gave rise to."""
    for owner, model in (
        (OWN, "acme.sql + 0.3*acme.json"),
        (FOREIGN, "zeta-one + 0.3*zeta-two"),
        ("across", "acme.sql + 0.3*zeta-two"),
    ):
        answer = await admin.post("/v1/chat/completions", json=CHAT | {"model": model})
        assert answer.status_code == 200, answer.text
        made.blends[owner] = answer.json()["model"]
        assert made.blends[owner].startswith("blend@")
    for model in ("zeta-one", "acme.json"):
        assert (await admin.post("/v1/chat/completions", json=CHAT | {"model": model})).status_code == 200
