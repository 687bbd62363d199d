"""Keys by which a caller says that two requests are one, and the answers kept under them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it was first given."""

    fingerprint: str
    """It is the SHA-256 of the request that it answers, in hex."""
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class KeyStanding:
    """What a request finds under its key: exactly one of the three."""

    is_ours: bool = False
    """The request is to be carried out; the key is held for it."""
    answer: KeptAnswer | None = None
    """It was carried out before."""
    is_running: bool = False
    """Another one holds the key right now."""
