"""The life of aliases: set, roll back, delete. A change is in force, here, when its call returns."""

from collections.abc import Callable, Mapping, Sequence

from amalgam.domain.adapter import is_name
from amalgam.domain.alias import Alias, AliasHistory, AliasPage, AliasTarget
from amalgam.domain.routing import Router, RouterNumbers, RouterSpec, Said
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.errors.adapters import InvalidName, NameReserved
from amalgam.errors.aliases import AliasOfAlias
from amalgam.errors.requests import FieldRefused, ModelNotFound
from amalgam.errors.tenants import NotInScope
from amalgam.registry.aliases import AliasRegistry
from amalgam.services.alias_routers import AliasRouters, Explanation, targets_of
from amalgam.services.catalog import Catalog


class AliasService:
    """Everything the admin plane does with aliases. ``expected`` is compare-and-set, see `AliasRegistry`.

    Args:
        registry: the truth.
        catalog: refreshed after every change.
        resolve: refuses a target that no request of these scopes could name as its ``model``.
        routers: what chooses among targets by content.
    """

    def __init__(
        self,
        registry: AliasRegistry,
        catalog: Catalog,
        resolve: Callable[[str, Scopes], object],
        routers: AliasRouters,
    ) -> None:
        self._routers = routers
        self._registry = registry
        self._catalog = catalog
        self._resolve = resolve

    async def put(
        self, name: str, targets: Sequence[AliasTarget], *, expected: int | None, scopes: Scopes = EVERYTHING
    ) -> tuple[Alias, bool]:
        """Make ``name`` mean ``targets``; also whether the alias is new. Each target has to be in scope.

        Raises:
            InvalidName, NameReserved, NameTaken: the name.
            FieldRefused: one target twice.
            AliasOfAlias, ModelNotFound: a target; ``param`` says which.
            StaleRevision: the alias is not at ``expected``.
        """
        self._require_name(name)
        meant = await self._catalog.found(lambda: self._checked(name, targets, scopes), must_ask=True)
        for index, target in enumerate(meant):
            if target.model in [earlier.model for earlier in meant[:index]]:
                raise FieldRefused(f"targets.{index}.model", "is there before; name it once and add up the weights")
        return await self._kept(name, meant, expected)

    async def put_router(
        self, name: str, spec: RouterSpec, *, expected: int | None, scopes: Scopes = EVERYTHING
    ) -> tuple[Alias, bool]:
        """Make ``name`` choose by content, with a router that is fitted now; also whether the alias is new.

        Raises:
            FieldRefused: see `AliasRouters.spelled`.
            What `put` raises.
        """
        self._require_name(name)
        spelled = self._routers.spelled(spec)
        targets = targets_of(spelled)
        await self._catalog.found(lambda: self._checked(name, targets, scopes, _place_in(spelled)), must_ask=True)
        return await self._kept(name, targets, expected, await self._routers.fitted(spelled))

    def _require_name(self, name: str) -> None:
        if not is_name(name):
            raise InvalidName(name)
        if name in self._catalog.base.names:
            raise NameReserved(name)

    async def _kept(
        self,
        name: str,
        targets: Sequence[AliasTarget],
        expected: int | None,
        router: tuple[Router, RouterNumbers] | None = None,
    ) -> tuple[Alias, bool]:
        alias, created = await self._registry.put(name, targets, expected=expected, router=router)
        await self._catalog.refresh()
        return alias, created

    async def labelled(
        self, candidates: Sequence[str], prompts: Sequence[str], scopes: Scopes = EVERYTHING
    ) -> Mapping[str, Sequence[str]]:
        """The prompts by the candidate whose adapter knows them; see `PromptLabels`."""
        return await self._routers.labels.labelled(candidates, prompts, scopes)

    async def explain(self, name: str, said: Said, scopes: Scopes = EVERYTHING) -> Explanation:
        """How the alias decides about what is said. Raises AliasNotFound, AliasNotRouted."""
        await self._catalog.refresh()
        return await self._routers.explained(await self.get(name), said, scopes)

    async def examples(self, name: str, scopes: Scopes = EVERYTHING) -> Mapping[str, Sequence[str]]:
        """What the alias' router was fitted with. Raises AliasNotFound, AliasNotRouted."""
        return await self._routers.examples(await self.get(name), scopes)

    def _checked(
        self,
        name: str,
        targets: Sequence[AliasTarget],
        scopes: Scopes,
        place: Callable[[int], str] = "targets.{}.model".format,
    ) -> tuple[AliasTarget, ...]:
        """The targets as they are kept, without the base model's prefix."""
        for index, target in enumerate(targets):
            try:
                if self._catalog.alias(target.model, scopes) is not None:
                    raise AliasOfAlias(name, target.model)
                self._resolve(target.model, scopes)
            except (AliasOfAlias, ModelNotFound) as error:
                raise error.at(place(index)) from error
        return tuple(AliasTarget(model=self._catalog.short(each.model), weight=each.weight) for each in targets)

    async def rollback(
        self, name: str, *, to_revision: int | None, expected: int | None, scopes: Scopes = EVERYTHING
    ) -> Alias:
        """Bring back what the alias meant before; see `AliasRegistry.rollback`.

        Raises:
            NotInScope: what it meant is not.
        """

        def allow(targets: Sequence[AliasTarget]) -> None:
            if not all(self._catalog.covers(target.model, scopes) for target in targets):
                raise NotInScope(f"what {name!r} meant before", param="name")

        alias = await self._registry.rollback(name, to_revision=to_revision, expected=expected, allow=allow)
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


def _place_in(spec: RouterSpec) -> Callable[[int], str]:
    """Where the body of a request names a target of a router."""
    count = len(spec.candidates)
    return lambda index: f"router.candidates.{index}" if index < count else "router.otherwise"
