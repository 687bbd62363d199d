"""Time and fresh ids as arguments: what needs them is given a source of them."""

import secrets
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""It gives the present moment, aware, in UTC."""


def utc_now() -> datetime:
    """The wall clock in UTC: what the roots of the program pass down as their `Clock`."""
    return datetime.now(UTC)


def new_id() -> str:
    """A fresh identifier: what the roots of the program pass down for jobs."""
    return f"job-{uuid.uuid4().hex}"


def new_front_id() -> str:
    """The same for processes that answer requests."""
    return f"front-{uuid.uuid4().hex[:16]}"


def new_evaluation_id() -> str:
    """The same for evaluations, and for who measures them."""
    return f"eval-{uuid.uuid4().hex}"


def new_server_name() -> str:
    """The same for a server, as leases name it."""
    return f"server-{uuid.uuid4().hex}"


def new_key_id() -> str:
    """The same for keys: 16 hex digits, which are no secret."""
    return secrets.token_hex(8)


def new_key_secret() -> str:
    """The secret of a key: 256 random bits in letters that a header carries."""
    return secrets.token_urlsafe(32)


def new_experiment_id() -> str:
    """The same for experiments."""
    return f"exp-{uuid.uuid4().hex[:24]}"


def new_file_id() -> str:
    """The same for stored files."""
    return f"file-{uuid.uuid4().hex}"


def new_batch_id() -> str:
    """The same for batches."""
    return f"batch_{uuid.uuid4().hex}"
