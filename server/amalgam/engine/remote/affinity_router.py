"""Ray Serve's hook for `affinity`. It makes one router in each process that has a handle."""

import time
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from amalgam.engine.remote.affinity import Shares, ranked, read_key


class _Seen:
    """One of Ray Serve's replicas, for one adapter."""

    def __init__(self, replica: RunningReplica, load: int | None, key: str) -> None:
        stats = replica.routing_stats or {}
        self.name = str(replica.replica_id.unique_id)
        self.load = load or 0
        self.is_resident = key in stats.get("resident", ())
        self.is_ready = bool(stats.get("is_ready", True))


class AffinityRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Ray Serve asks it in which order the replicas are to be tried for a request."""

    def initialize_state(self, *, busy: int = 32, **_: Any) -> None:
        """Called once.

        Args:
            busy: requests from which on a replica is passed over where another one is free.
        """
        self._busy = busy
        self._shares = Shares(time.monotonic)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each."""
        attempt, key = read_key("" if pending_request is None else pending_request.metadata.multiplexed_model_id)
        if pending_request is not None:
            # Where none of them takes the request now, wait before they are asked again.
            pending_request.routing_context.should_backoff = True
            if key and attempt == 0:
                self._shares.arrived(key)
        loads = self.replica_queue_len_cache
        seen = [_Seen(one, loads.get(one.replica_id), key) for one in candidate_replicas]
        homes = self._shares.homes(key, len(seen)) if key else 1
        return [[candidate_replicas[i]] for i in ranked(key, seen, homes, self._busy, attempt)]
