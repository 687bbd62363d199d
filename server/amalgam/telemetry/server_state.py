"""What the page of metrics says of a server that nobody counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServerState:
    """What is true at the moment of a scrape."""

    engine_ready: bool = False
    engine_restarts: int = 0
    engine_start_s: Mapping[str, float] = field(default_factory=dict)
    artifacts_damaged: int = 0
    registered: int = 0
    resident: int = 0
    pinned: int = 0
    held: int = 0
    """A request uses so many versions."""
    capacity: int = 0
    slots: int = 0
    revision: int = 0
    worker_alive: bool = False
    worker_restarts: int = 0
    blender_alive: bool = False
    blender_restarts: int = 0
    registry_up: bool = False
    registry_notices: bool = False
    """It tells whether the registry answered the last look for jobs."""
    live_jobs: Mapping[tuple[str, str], int] | None = None
    """It counts unfinished jobs by kind and state, as the registry said last; None before it said anything."""
