"""`amalgam keys`: create, list, change, rotate and revoke keys of a running server."""

from typing import Annotated, Any

import typer

from amalgam.cli import limit_options
from amalgam.cli.client import DEFAULT_URL, Key, Url, answer, client, every_page, path_of, print_table
from amalgam.cli.consoles import on_stdout
from amalgam.cli.one_line import OneLineGroup
from amalgam.cli.tables import PlainTable, whole
from amalgam.errors.requests import FieldRefused

app = typer.Typer(cls=OneLineGroup, help="Keys of tenants, on a running server.", no_args_is_help=True)

_DAY_S = 86_400.0
Days = Annotated[float | None, typer.Option(help="days until it expires; without it: as long as it is not revoked")]

Models = Annotated[
    list[str] | None,
    typer.Option(help="what it may ask for: a name, a pattern as acme.*, or base; may be repeated"),
]
Blends = Annotated[str | None, typer.Option(help="none, own or any")]


@app.command("create")
def create(
    context: typer.Context,
    tenant: Annotated[str, typer.Option(help="whose key it is")],
    role: Annotated[str, typer.Option(help="client, publisher, reader, metrics or admin")] = "client",
    models: Models = None,
    blends: Blends = None,
    name: Annotated[str, typer.Option(help="for people")] = "",
    expires_in_days: Days = None,
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
    """Create a key and print it: alone on standard output, and this once."""
    body: dict[str, Any] = {"tenant": tenant, "role": role, "name": name} | _scopes(models, blends)
    body |= {} if expires_in_days is None else {"expires_in_s": expires_in_days * _DAY_S}
    limits = limit_options.given(context)
    body |= {"limits": limits} if limits else {}
    with client(url, key) as session:
        made = answer(session.post(path_of("keys"), json=body), "key", "id")
    typer.echo(f"key {made['id']} of {made['tenant']}; it is shown this once", err=True)
    typer.echo(made["key"])


@app.command("ls")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="of this tenant alone")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List keys, without their secrets."""
    table = PlainTable(
        *(whole("id"), whole("tenant"), "role", whole("models"), "blends", "state", "expires", "last used"),
        *("limits", "stored", "name"),
    )
    query = {} if tenant is None else {"tenant": tenant}
    with client(url, key) as session:
        for one in every_page(session, path_of("keys"), **query):
            models, state = ", ".join(one["models"]), _state(one)
            times = (one["expires_at"] or "never", one["last_used_at"] or "–")
            sizes = (limit_options.told(one["limits"]), limit_options.told_bytes(one["stored"]))
            row = (one["id"], one["tenant"], one["role"], models, one["blends"], state, *times, *sizes, one["name"])
            table.add_texts(*row)
    print_table(table)


@app.command()
def update(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="id, as ls shows it")],
    models: Models = None,
    blends: Blends = None,
    name: Annotated[str | None, typer.Option(help="for people")] = None,
    state: Annotated[str | None, typer.Option(help="active, or suspended: it opens nothing")] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="days from now until it expires")] = None,
    never_expires: Annotated[bool, typer.Option("--never-expires", help="it ends when it is revoked")] = False,
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
    """Change a key; what is not given stays, other limits included."""
    body = _scopes(models, blends)
    body |= {field: value for field, value in (("name", name), ("state", state)) if value is not None}
    if expires_in_days is not None and never_expires:
        raise FieldRefused("never-expires", "and --expires-in-days cannot both be given")
    if never_expires or expires_in_days is not None:
        body["expires_in_s"] = None if expires_in_days is None else expires_in_days * _DAY_S
    limits = limit_options.given(context)
    with client(url, key) as session:
        if limits or no_limit:
            held = answer(session.get(path_of("keys", key_id)), "limits")["limits"]
            body["limits"] = limit_options.changed(held, limits, no_limit)
        one = answer(session.patch(path_of("keys", key_id), json=body), "id", "limits")
    ends = "" if one["expires_at"] is None else f", expires {one['expires_at']}"
    line = f"{one['id']}: {_state(one)}{ends}, models {', '.join(one['models'])}, blends {one['blends']}"
    on_stdout().print(f"{line}, limits: {limit_options.told(one['limits'])}", markup=False, soft_wrap=True)


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="id, as ls shows it")],
    overlap_hours: Annotated[float, typer.Option(help="hours for which both keys are valid", min=0)] = 24.0,
    expires_in_days: Days = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Put a successor beside a key and print it: alone on standard output, and this once."""
    body = {"overlap_s": overlap_hours * 3600}
    body |= {} if expires_in_days is None else {"expires_in_s": expires_in_days * _DAY_S}
    with client(url, key) as session:
        made = answer(session.post(path_of("keys", key_id) + ":rotate", json=body), "old", "new")
    typer.echo(f"key {made['new']['id']}; {key_id} ends at {made['old']['expires_at']}", err=True)
    typer.echo(made["new"]["key"])


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="id, as ls shows it")], url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """End a key at once; other servers of one registry follow within a second."""
    with client(url, key) as session:
        ended = answer(session.post(path_of("keys", key_id) + ":revoke"), "id", "state")
    on_stdout().print(f"{ended['id']} is {ended['state']}", markup=False, soft_wrap=True)


def _scopes(models: list[str] | None, blends: str | None) -> dict[str, Any]:
    found = {} if not models else {"models": [one for text in models for one in text.split(",")]}
    return found if blends is None else {**found, "blends": blends}


def _state(key: dict[str, Any]) -> str:
    return f"rotated to {key['successor']}" if key["state"] == "active" and key["successor"] else str(key["state"])
