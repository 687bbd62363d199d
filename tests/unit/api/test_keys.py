import hashlib
from typing import Any

import pytest
from starlette.datastructures import Headers

from amalgam.api.auth import KeyRing, bearer, needs_admin, require_safe_binding
from amalgam.errors.doors import AdminKeyNeeded, ForeignOrigin, KeyUnusable
from amalgam.errors.requests import InvalidApiKey, UnsafeBinding
from amalgam.settings import Settings


def settings(**changes: Any) -> Settings:
    return Settings(**({"admin_key": None, "api_keys": ""} | changes))


def with_key(key: str) -> Headers:
    return Headers({"authorization": f"Bearer {key}"})


def test_keys_of_every_form_are_accepted() -> None:
    hashed = "sha256:" + hashlib.sha256(b"ak_b_two").hexdigest().upper()
    keys = KeyRing.of(settings(admin_key="ak_root_x", api_keys=f"ak_a_one,{hashed}"))
    assert not keys.open
    for key in ("ak_a_one", "ak_b_two", "ak_root_x"):
        assert keys.refusal("/v1/models", with_key(key)) is None
    for key in (hashed, "ak_a_on", "ak_a_one ak_a_one", ""):
        assert type(keys.refusal("/v1/models", with_key(key))) is InvalidApiKey
    assert keys.refusal("/admin/v1/jobs", with_key("ak_root_x")) is None
    assert type(keys.refusal("/admin/v1/jobs", with_key("ak_b_two"))) is AdminKeyNeeded
    assert type(keys.refusal("/admin/v1/jobs", with_key("ak_c"))) is InvalidApiKey


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
    assert type(only_clients.refusal("/admin/v1/jobs", with_key("ak_a_one"))) is AdminKeyNeeded
    only_admin = KeyRing.of(settings(admin_key="ak_root_x"))
    assert type(only_admin.refusal("/v1/models", Headers())) is InvalidApiKey
    assert only_admin.refusal("/v1/models", with_key("ak_root_x")) is None


def test_metrics_are_open_only_where_they_are_said_to_be() -> None:
    assert KeyRing.of(settings(admin_key="k")).refusal("/metrics", Headers()) is None
    closed = KeyRing.of(settings(admin_key="k", api_keys="c", metrics_open=False))
    assert type(closed.refusal("/metrics", Headers())) is InvalidApiKey
    assert closed.refusal("/metrics", with_key("c")) is None


def test_without_keys_a_foreign_host_is_turned_away() -> None:
    keys = KeyRing.of(settings())
    assert keys.open
    assert keys.refusal("/v1/models", Headers({"host": "localhost:8000"})) is None
    assert type(keys.refusal("/v1/models", Headers({"host": "rebound.example"}))) is ForeignOrigin


@pytest.mark.parametrize(
    ("path", "admin"),
    [
        ("/v1/models", False), ("/v1/load_lora_adapter", True), ("/v1/unload_lora_adapter", True), ("/tokenize", False),
        ("/admin/v1/jobs", True), ("/openapi.json", True), ("/", True), ("/v1", True), ("/tokenize/x", True),
        ("/V1/models", True),
    ],
)  # fmt: skip
def test_what_is_not_known_to_be_for_clients_is_for_admins(path: str, admin: bool) -> None:
    assert needs_admin(path) is admin


def test_bearer_wins_over_the_other_header_and_schemes_are_not_keys() -> None:
    assert bearer(Headers({"authorization": "bEaReR  a ", "x-api-key": "b"})) == "a"
    assert bearer(Headers({"authorization": "Basic a", "x-api-key": "b"})) == "b"
    assert bearer(Headers({"authorization": "a"})) is None
    assert bearer(Headers({"x-api-key": ""})) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org", ""])
def test_only_loopback_is_bound_unless_both_planes_have_keys(host: str) -> None:
    for given in ({}, {"admin_key": "a"}, {"api_keys": "b"}):
        with pytest.raises(UnsafeBinding):
            require_safe_binding(settings(host=host, **given))
        for loopback in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
            require_safe_binding(settings(host=loopback, **given))
    require_safe_binding(settings(host=host, admin_key="a", api_keys="b"))
