"""Salts that keep one tenant's prompts apart from another's in the engine's prefix cache.

A prompt that was seen before is answered sooner, and counted as a hit; where all share one cache, either tells a client
what another has asked. With a salt for each tenant its keys find each other's prompts, and nobody else's; tenants that
share one on purpose have one ``cache_group``. Keys of the environment may be different people's: each has its own.
"""

import hashlib
import hmac
from typing import Any, Final

from amalgam.domain.tenant import Tenant
from amalgam.engine.protocol import Endpoint

SALTED: Final[frozenset[Endpoint]] = frozenset(
    {"chat_completions", "completions", "responses", "messages", "embeddings"}
)
"""The requests of these endpoints have the field: all that compute. A test compares this with vLLM."""


def cache_owner(client: str, tenant: Tenant | None) -> str:
    """Whose salt a request gets.

    Args:
        client: the word for its key, empty on a server without keys.
        tenant: that the key belongs to; None: a key of the environment, or none.
    """
    if tenant is None:
        return client
    # Neither form is a word for a key, which has only hex digits.
    return f"tenant:{tenant.id}" if tenant.cache_group is None else f"group:{tenant.cache_group}"


class CacheSalts:
    """One server's salts.

    Args:
        secret: of this process, drawn anew at each start; the cache does not outlive it either.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, owner: str) -> str:
        """The salt of ``owner``: hex digits, from which neither owner nor secret can be had."""
        return hmac.digest(self._secret, owner.encode(), hashlib.sha256).hex()

    def salted(self, endpoint: Endpoint, body: dict[str, Any], owner: str) -> dict[str, Any]:
        """``body`` with the salt of ``owner`` and no other; without an owner, as on a server without keys, with none.

        Args:
            endpoint: that will answer.
            body: of the request.
            owner: see `cache_owner`; or another name for whoever asks that is none of these.
        """
        bare = {name: value for name, value in body.items() if name != "cache_salt"}
        return bare | {"cache_salt": self.of(owner)} if owner and endpoint in SALTED else bare
