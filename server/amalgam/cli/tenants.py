"""`amalgam tenants`: list, create, change, limit and delete tenants of a running server."""

from typing import Annotated, Any

import typer

from amalgam.cli import limit_options
from amalgam.cli.client import DEFAULT_URL, Key, Url, answer, client, every_page, path_of, print_table
from amalgam.cli.consoles import on_stdout
from amalgam.cli.one_line import OneLineGroup
from amalgam.cli.tables import PlainTable, whole

app = typer.Typer(cls=OneLineGroup, help="Tenants, on a running server.", no_args_is_help=True)

Name = Annotated[str | None, typer.Option(help="for people")]
Weight = Annotated[float | None, typer.Option(help="share under contention, beside those of others")]
CacheGroup = Annotated[
    str | None, typer.Option(help="tenants of one group find each other's prompts in the prefix cache")
]


@app.command("ls")
def list_tenants(url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List tenants."""
    table = PlainTable(whole("id"), "name", "state", "weight", "limits", "stored")
    with client(url, key) as session:
        for one in every_page(session, path_of("tenants")):
            stored = limit_options.told_bytes(one["stored"])
            table.add_texts(one["id"], one["name"], one["state"], f"{one['weight']:g}", _limits(one), stored)
    print_table(table)


@app.command()
def create(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="id, as acme; never given to another")],
    name: Name = None,
    weight: Weight = None,
    cache_group: CacheGroup = None,
    requests_per_minute: limit_options.RequestsPerMinute = None,
    tokens_per_minute: limit_options.TokensPerMinute = None,
    tokens_per_day: limit_options.TokensPerDay = None,
    tokens_per_month: limit_options.TokensPerMonth = None,
    concurrent_requests: limit_options.ConcurrentRequests = None,
    blends_per_minute: limit_options.BlendsPerMinute = None,
    stored_bytes: limit_options.StoredBytes = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Create a tenant."""
    limits = limit_options.given(context)
    body = {"id": tenant} | _fields(name, weight, cache_group) | ({"limits": limits} if limits else {})
    with client(url, key) as session:
        _print(answer(session.post(path_of("tenants"), json=body)))


@app.command()
def update(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="id")],
    name: Name = None,
    weight: Weight = None,
    cache_group: CacheGroup = None,
    state: Annotated[str | None, typer.Option(help="active, or suspended: its keys open nothing")] = None,
    requests_per_minute: limit_options.RequestsPerMinute = None,
    tokens_per_minute: limit_options.TokensPerMinute = None,
    tokens_per_day: limit_options.TokensPerDay = None,
    tokens_per_month: limit_options.TokensPerMonth = None,
    concurrent_requests: limit_options.ConcurrentRequests = None,
    blends_per_minute: limit_options.BlendsPerMinute = None,
    stored_bytes: limit_options.StoredBytes = None,
    no_limit: limit_options.NoLimit = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Change a tenant; what is not given stays, other limits included."""
    limits = limit_options.given(context)
    body = _fields(name, weight, cache_group) | ({} if state is None else {"state": state})
    with client(url, key) as session:
        if limits or no_limit:
            held = answer(session.get(path_of("tenants", tenant)), "limits")["limits"]
            body["limits"] = limit_options.changed(held, limits, no_limit)
        _print(answer(session.patch(path_of("tenants", tenant), json=body)))


@app.command()
def limit(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="id")],
    pattern: Annotated[str, typer.Argument(help="of names: a name, a pattern as acme.*, or base")],
    requests_per_minute: limit_options.RequestsPerMinute = None,
    tokens_per_minute: limit_options.TokensPerMinute = None,
    tokens_per_day: limit_options.TokensPerDay = None,
    tokens_per_month: limit_options.TokensPerMonth = None,
    concurrent_requests: limit_options.ConcurrentRequests = None,
    blends_per_minute: limit_options.BlendsPerMinute = None,
    no_limit: limit_options.NoLimit = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Limit what a tenant asks of names of a pattern; a pattern without any limit left is forgotten."""
    limits = limit_options.given(context)
    with client(url, key) as session:
        held = answer(session.get(path_of("tenants", tenant)), "model_limits")["model_limits"]
        entries = {entry["pattern"]: entry["limits"] for entry in held}
        entries[pattern] = limit_options.changed(entries.get(pattern, {}), limits, no_limit)
        kept = [{"pattern": name, "limits": its} for name, its in entries.items() if limit_options.told(its) != "none"]
        _print(answer(session.patch(path_of("tenants", tenant), json={"model_limits": kept})))


@app.command()
def rm(tenant: Annotated[str, typer.Argument(help="id")], url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Delete a tenant and revoke its keys; what it registered stays."""
    with client(url, key) as session:
        gone = answer(session.delete(path_of("tenants", tenant)), "id")
    on_stdout().print(f"deleted {gone['id']}, and revoked its keys", markup=False, soft_wrap=True)


def _fields(name: str | None, weight: float | None, cache_group: str | None) -> dict[str, Any]:
    given = {"name": name, "weight": weight, "cache_group": cache_group}
    return {field: value for field, value in given.items() if value is not None}


def _limits(tenant: dict[str, Any]) -> str:
    found = limit_options.told(tenant["limits"])
    by_name = [f"{entry['pattern']}: {limit_options.told(entry['limits'])}" for entry in tenant["model_limits"]]
    return "; ".join([found, *by_name])


def _print(tenant: dict[str, Any]) -> None:
    line = f"{tenant['id']}: {tenant['state']}, weight {tenant['weight']:g}, limits: {_limits(tenant)}"
    on_stdout().print(line, markup=False, soft_wrap=True)
