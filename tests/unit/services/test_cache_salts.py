import typing

import pytest

from amalgam.engine.protocol import Endpoint
from amalgam.services.cache_salts import SALTED, CacheSalts


def test_each_owner_has_one_salt_that_another_server_does_not_know() -> None:
    salts = CacheSalts(b"a" * 32)
    assert salts.of("one") == CacheSalts(b"a" * 32).of("one")
    assert len({salts.of("one"), salts.of("two"), CacheSalts(b"b" * 32).of("one")}) == 3
    assert "one" not in salts.of("one")


def test_a_salt_of_the_clients_own_never_stays() -> None:
    salts = CacheSalts(b"a" * 32)
    for owner in ("one", ""):
        for endpoint in typing.get_args(Endpoint):
            body = {"model": "sql", "cache_salt": "another's"}
            salted = salts.salted(endpoint, body, owner)
            expected = salts.of(owner) if owner and endpoint in SALTED else None
            assert salted.get("cache_salt") == expected, endpoint
            assert body["cache_salt"] == "another's", "what the client sent is not changed"


def test_the_endpoints_are_those_whose_request_has_the_field() -> None:
    pytest.importorskip("vllm")
    from amalgam.engine.vllm_endpoints import endpoint_table

    having = set()
    for endpoint, spec in endpoint_table().items():
        fields = [found.model_fields for found in classes(spec.request._type)]
        if any("cache_salt" in names for names in fields):
            having.add(endpoint)
            assert all("cache_salt" in names for names in fields), endpoint
    assert having == SALTED


def classes(annotation: typing.Any) -> list[typing.Any]:
    """The request classes that an annotation allows."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in classes(part)]
