"""What the names of blends mean, for every server: recipes by digest, and when one was last asked for."""

from collections.abc import Collection
from datetime import timedelta

import sqlalchemy as sa

from amalgam.domain.blend import digest_prefix
from amalgam.domain.clock import Clock
from amalgam.domain.recipe import Recipe
from amalgam.registry.database import Database
from amalgam.registry.tables import blends

_BEYOND_HEX = "g"
"""It sorts behind every digit."""


class BlendNameRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def remember(self, digest: str, recipe: Recipe) -> None:
        """Keep the recipe of that digest, as used now. Repeating it changes nothing else."""
        async with self._database.write() as connection:
            now = self._clock()
            known = await connection.execute(blends.update().where(blends.c.digest == digest).values(used_at=now))
            if not known.rowcount:
                row = {"digest": digest, "recipe": recipe.model_dump(mode="json"), "used_at": now}
                await connection.execute(blends.insert().values(**row))

    async def find(self, names: Collection[str]) -> dict[str, Recipe]:
        """The recipes of blends by name; without those that are not known, or that two recipes would have."""
        prefixes = {name: digest_prefix(name) for name in names}
        ranges = [
            (blends.c.digest >= prefix) & (blends.c.digest < prefix + _BEYOND_HEX) for prefix in prefixes.values()
        ]
        query = sa.select(blends.c.digest, blends.c.recipe).where(sa.or_(sa.false(), *ranges))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        found: dict[str, Recipe] = {}
        for name, prefix in prefixes.items():
            meant = [recipe for digest, recipe in rows if digest.startswith(prefix)]
            if len(meant) == 1:
                found[name] = Recipe.model_validate(meant[0])
        return found

    async def forget_older(self, keep_s: float) -> int:
        """Forget recipes that were last used more than ``keep_s`` seconds ago; returns how many there were."""
        async with self._database.write() as connection:
            before = self._clock() - timedelta(seconds=keep_s)
            return int((await connection.execute(blends.delete().where(blends.c.used_at <= before))).rowcount)
