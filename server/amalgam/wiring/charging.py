"""What requests may use, and what they used."""

import time
from dataclasses import dataclass

from amalgam.domain.clock import new_front_id
from amalgam.registry.limit_slices import LimitSlices
from amalgam.registry.usage_rows import UsageRegistry
from amalgam.services.limits import Limiter
from amalgam.services.usage_ledger import UsageLedger
from amalgam.wiring.parts import Parts
from amalgam.wiring.storage import Storage


@dataclass(frozen=True, slots=True)
class Charging:
    """Limits and the ledger, under one name for this process."""

    limits: Limiter
    usage: UsageLedger

    @classmethod
    def open(cls, parts: Parts, kept: Storage) -> "Charging":
        """What is left of limits is given back on the way out, and what was used is written."""
        database, front = kept.database, new_front_id()
        limits = Limiter(LimitSlices(database), front, time.monotonic, database.clock)
        keep_days = parts.settings.usage.usage_keep_days
        usage = UsageLedger(UsageRegistry(database), front, database.clock, keep_days)
        parts.stack.push_async_callback(usage.close)
        parts.stack.push_async_callback(limits.close)
        return cls(limits, usage)
