"""The life of aliases: set, roll back, delete. A change is in force, here, when its call returns."""

from collections.abc import Callable, Sequence

from amalgam.domain.adapter import is_name
from amalgam.domain.alias import Alias, AliasHistory, AliasPage, AliasTarget
from amalgam.errors.adapters import InvalidName, NameReserved
from amalgam.errors.aliases import AliasOfAlias
from amalgam.errors.requests import FieldRefused, ModelNotFound
from amalgam.registry.aliases import AliasRegistry
from amalgam.services.catalog import Catalog


class AliasService:
    """Everything the admin plane does with aliases. ``expected`` is compare-and-set, see `AliasRegistry`.

    Args:
        registry: the truth.
        catalog: refreshed after every change.
        resolve: refuses a target that no request could name as its ``model``.
    """

    def __init__(self, registry: AliasRegistry, catalog: Catalog, resolve: Callable[[str], object]) -> None:
        self._registry = registry
        self._catalog = catalog
        self._resolve = resolve

    async def put(self, name: str, targets: Sequence[AliasTarget], *, expected: int | None) -> tuple[Alias, bool]:
        """Make ``name`` mean ``targets``; also whether the alias is new.

        Raises:
            InvalidName, NameReserved, NameTaken: the name.
            FieldRefused: one target twice.
            AliasOfAlias, ModelNotFound: a target; ``param`` says which.
            StaleRevision: the alias is not at ``expected``.
        """
        if not is_name(name):
            raise InvalidName(name)
        if name == self._catalog.base.served_name:
            raise NameReserved(name)
        try:
            meant = self._checked(name, targets)
        except ModelNotFound:
            # Another replica may have registered it a moment ago.
            await self._catalog.refresh()
            meant = self._checked(name, targets)
        for index, target in enumerate(meant):
            if target.model in [earlier.model for earlier in meant[:index]]:
                raise FieldRefused(f"targets.{index}.model", "is there before; name it once and add up the weights")
        alias, created = await self._registry.put(name, meant, expected=expected)
        await self._catalog.refresh()
        return alias, created

    def _checked(self, name: str, targets: Sequence[AliasTarget]) -> tuple[AliasTarget, ...]:
        """The targets as they are kept, without the base model's prefix."""
        for index, target in enumerate(targets):
            try:
                if self._catalog.alias(target.model) is not None:
                    raise AliasOfAlias(name, target.model)
                self._resolve(target.model)
            except (AliasOfAlias, ModelNotFound) as error:
                error.param = f"targets.{index}.model"
                raise
        return tuple(AliasTarget(model=self._catalog.short(each.model), weight=each.weight) for each in targets)

    async def rollback(self, name: str, *, to_revision: int | None, expected: int | None) -> Alias:
        """Bring back what the alias meant before; see `AliasRegistry.rollback`."""
        alias = await self._registry.rollback(name, to_revision=to_revision, expected=expected)
        await self._catalog.refresh()
        return alias

    async def delete(self, name: str, *, expected: int | None) -> Alias:
        """Delete the alias; requests that it let in go on. Raises AliasNotFound, StaleRevision."""
        alias = await self._registry.delete(name, expected=expected)
        await self._catalog.refresh()
        return alias

    async def get(self, name: str) -> Alias:
        """One alias. Raises AliasNotFound."""
        return await self._registry.get(name)

    async def list(self, search: str, limit: int, cursor: str | None) -> AliasPage:
        """A page of aliases whose name contains ``search``."""
        return await self._registry.list(search=search, limit=limit, cursor=cursor)

    async def history(self, name: str, limit: int, cursor: int | None) -> AliasHistory:
        """A page of changes, newest first. Raises AliasNotFound."""
        return await self._registry.history(name, limit=limit, cursor=cursor)
