import hashlib
from typing import Any

import pytest
from starlette.datastructures import Headers

from amalgam.api.access import ADMIN, CLIENT, METRICS, Access
from amalgam.api.auth import KeyRing, client_of, key_of, require_safe_binding
from amalgam.errors import AmalgamError
from amalgam.errors.http import ForeignOrigin, KeyNotSufficient, KeyUnusable
from amalgam.errors.requests import InvalidApiKey, UnsafeBinding
from amalgam.settings import Settings


def settings(**changes: Any) -> Settings:
    return Settings(**({"admin_key": None, "api_keys": ""} | changes))


def with_key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refusal(
    keys: KeyRing, access: Access, headers: dict[str, str] | None = None, peer: str | None = "203.0.113.9"
) -> AmalgamError | None:
    client = None if peer is None else (peer, 1)
    scope = {"type": "http", "path": "/", "headers": Headers(headers or {}).raw, "client": client}
    return access.refusal(keys.caller(scope))


def test_keys_of_every_form_are_accepted() -> None:
    hashed = "sha256:" + hashlib.sha256(b"ak_b_two").hexdigest().upper()
    keys = KeyRing.of(settings(admin_key="ak_root_x", api_keys=f"ak_a_one,{hashed}"))
    assert not keys.open
    for key in ("ak_a_one", "ak_b_two", "ak_root_x"):
        assert refusal(keys, CLIENT, with_key(key)) is None
    for key in (hashed, "ak_a_on", "ak_a_one ak_a_one", ""):
        assert type(refusal(keys, CLIENT, with_key(key))) is InvalidApiKey
    assert refusal(keys, ADMIN, with_key("ak_root_x")) is None
    assert type(refusal(keys, ADMIN, with_key("ak_b_two"))) is KeyNotSufficient
    assert type(refusal(keys, ADMIN, with_key("ak_c"))) is InvalidApiKey


@pytest.mark.parametrize(
    "key", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "g" * 64, "two words", "clé", "x" * 513, "new\nline"]
)
def test_a_key_that_no_header_can_carry_is_refused_at_the_start_and_not_repeated(key: str) -> None:
    with pytest.raises(KeyUnusable) as caught:
        KeyRing.of(settings(admin_key=key))
    assert "AMALGAM_ADMIN_KEY" in caught.value.message
    assert len(key) < 8 or key not in caught.value.message


def test_a_plane_without_a_key_is_closed_once_the_other_has_one() -> None:
    only_clients = KeyRing.of(settings(api_keys="ak_a_one"))
    assert type(refusal(only_clients, ADMIN, with_key("ak_a_one"))) is KeyNotSufficient
    only_admin = KeyRing.of(settings(admin_key="ak_root_x"))
    assert type(refusal(only_admin, CLIENT)) is InvalidApiKey
    assert refusal(only_admin, CLIENT, with_key("ak_root_x")) is None


def test_metrics_are_open_only_where_they_are_said_to_be() -> None:
    assert refusal(KeyRing.of(settings(admin_key="k", metrics_open=True)), METRICS) is None
    closed = KeyRing.of(settings(admin_key="k", api_keys="c", metrics_open=False))
    assert type(refusal(closed, METRICS)) is InvalidApiKey
    assert type(refusal(closed, METRICS, with_key("c"))) is KeyNotSufficient
    assert refusal(closed, METRICS, with_key("k")) is None


HERE = {"host": "127.0.0.1:8000"}


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_reads_metrics_without_a_key_but_not_for_others(peer: str) -> None:
    for keys in (KeyRing.of(settings(admin_key="k", api_keys="c")), KeyRing.of(settings(api_keys="c"))):
        assert refusal(keys, METRICS, HERE, peer) is None
        for proxied in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"):
            assert refusal(keys, METRICS, HERE | {proxied: "127.0.0.1"}, peer) is not None, proxied
        assert refusal(keys, METRICS, {"host": "rebound.example"}, peer) is not None
        assert refusal(keys, METRICS, HERE | {"origin": "http://evil.example"}, peer) is not None
        assert refusal(keys, CLIENT, HERE, peer) is not None
        assert refusal(keys, ADMIN, HERE, peer) is not None


@pytest.mark.parametrize("peer", ["10.0.0.7", "203.0.113.9", "::ffff:10.0.0.7", "fe80::1", "", "/run/a.sock", None])
def test_other_machines_need_a_key_for_metrics_and_a_clients_is_none(peer: str | None) -> None:
    """Counters of the prefix cache would tell one client what another has asked."""
    keys = KeyRing.of(settings(admin_key="k", api_keys="c", metrics_key="m"))
    assert type(refusal(keys, METRICS, HERE, peer)) is InvalidApiKey
    assert type(refusal(keys, METRICS, HERE | with_key("c"), peer)) is KeyNotSufficient
    for key in ("k", "m"):
        assert refusal(keys, METRICS, HERE | with_key(key), peer) is None


def test_the_key_for_metrics_opens_nothing_else_and_is_asked_for_everywhere() -> None:
    keys = KeyRing.of(settings(admin_key="k", api_keys="c", metrics_key="m"))
    assert type(refusal(keys, METRICS, HERE, "127.0.0.1")) is InvalidApiKey
    for access in (CLIENT, ADMIN):
        assert type(refusal(keys, access, with_key("m"))) is KeyNotSufficient
    assert KeyRing.of(settings(metrics_key="m")).open
    with pytest.raises(UnsafeBinding):
        require_safe_binding(settings(host="0.0.0.0", metrics_key="m"))


def test_without_keys_a_foreign_host_is_turned_away() -> None:
    keys = KeyRing.of(settings())
    assert keys.open
    assert refusal(keys, CLIENT, {"host": "localhost:8000"}) is None
    assert type(refusal(keys, CLIENT, {"host": "rebound.example"})) is ForeignOrigin


def test_a_key_has_one_stable_word_that_gives_nothing_of_it_away() -> None:
    keys = KeyRing.of(settings(admin_key="ak_root_x", api_keys="ak_a_one,ak_b_two"))

    def word(key: str) -> str:
        return keys.caller({"type": "http", "path": "/", "headers": Headers(with_key(key)).raw}).client

    words = [word(key) for key in ("ak_a_one", "ak_b_two", "ak_root_x")]
    assert len(set(words)) == 3
    assert words[0] == word("ak_a_one") == client_of("ak_a_one")
    assert not any("ak_" in found for found in words)
    assert word("ak_wrong") == ""


READ: list[tuple[list[tuple[str, str]], str | None]] = [
    ([("authorization", "Bearer a")], "a"),
    ([("AUTHORIZATION", "bEaReR  a ")], "a"),
    ([("x-api-key", "a")], "a"),
    ([("api-key", "a")], "a"),
    ([("x-api-key", " a\t")], "a"),
    # Two at once: a bearer, then Anthropic's, then Azure's; what holds no key does not count.
    ([("x-api-key", "b"), ("authorization", "Bearer a")], "a"),
    ([("api-key", "b"), ("x-api-key", "a")], "a"),
    ([("authorization", "Bearer "), ("x-api-key", "a")], "a"),
    ([("authorization", "Basic b"), ("api-key", "a")], "a"),
    ([("authorization", "b"), ("x-api-key", "a")], "a"),
    ([("x-api-key", "  "), ("api-key", "a")], "a"),
    # The same twice: the first, as a proxy in front reads it too, and never the two as one.
    ([("authorization", "Bearer a"), ("authorization", "Bearer b")], "a"),
    ([("x-api-key", "a"), ("x-api-key", "b")], "a"),
    ([("authorization", "Basic b"), ("authorization", "Bearer a")], None),
    # No key: other schemes, a scheme alone, a bare word, another separator, headers of other services.
    ([("authorization", "a")], None),
    ([("authorization", "Bearer")], None),
    ([("authorization", "Bearer  ")], None),
    ([("authorization", "Bearer\ta")], None),
    ([("authorization", "Token a")], None),
    ([("authorization", "Basic YTpi")], None),
    ([("authorization", "")], None),
    ([("x-api-key", "")], None),
    ([("x-goog-api-key", "a")], None),
    ([("proxy-authorization", "Bearer a")], None),
    ([("x-auth-token", "a")], None),
    ([("ocp-apim-subscription-key", "a")], None),
    ([("openai-api-key", "a")], None),
    ([("cookie", "api-key=a")], None),
    ([], None),
]
"""Headers, and the key that is read of them."""


@pytest.mark.parametrize(("headers", "key"), READ, ids=lambda value: str(value)[:48])
def test_which_key_is_read(headers: list[tuple[str, str]], key: str | None) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    assert key_of(Headers(raw=raw)) == key
    scope = {"type": "http", "path": "/", "headers": raw, "client": ("203.0.113.9", 1)}
    refused = CLIENT.refusal(KeyRing.of(settings(api_keys="a")).caller(scope))
    assert (refused is None) == (key == "a")
    if refused is not None:
        assert type(refused) is InvalidApiKey
        assert "Authorization: Bearer" in refused.message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org", ""])
def test_only_loopback_is_bound_unless_the_administrator_has_a_key(host: str) -> None:
    for given in ({}, {"api_keys": "b"}):
        with pytest.raises(UnsafeBinding):
            require_safe_binding(settings(host=host, **given))
        for loopback in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
            require_safe_binding(settings(host=loopback, **given))
    require_safe_binding(settings(host=host, admin_key="a", api_keys="b"))
    # Nobody else enters: clients get keys that the administrator creates.
    require_safe_binding(settings(host=host, admin_key="a"))
