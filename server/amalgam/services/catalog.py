"""The meaning of `model`: what a name, with what is known of names now, can be answered by."""

from collections.abc import Iterable
from dataclasses import dataclass

from amalgam.domain.adapter import AdapterVersion, BaseModelSpec, VersionRef
from amalgam.domain.alias import Alias, Uniform, draw
from amalgam.domain.expression import is_expression
from amalgam.domain.in_scope import HIDDEN, covers, shown_alias
from amalgam.domain.routing import Route, Said
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.serving_profile import ServingProfile
from amalgam.errors.aliases import AliasTargetGone, AmbiguousAlias
from amalgam.errors.requests import ModelNotFound
from amalgam.errors.tenants import NotInScope
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.names import NameRegistry
from amalgam.registry.profiles import ProfileRegistry
from amalgam.registry.routers import RouterRegistry
from amalgam.services.cold_names import Wanted
from amalgam.services.known_names import MOST_VERSIONS, KnownNames


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's ``model`` resolved to, at admission and for good."""

    engine_name: str
    """The engine is asked for it and the answer's ``model`` says it: ``sql@3``, or the base model's name."""
    version: AdapterVersion | None
    """It is None for the base model, or a blend."""
    recipe: str | None = None
    """It is what an expression described: that expression in one spelling, with exact versions."""
    route: Route | None = None
    """It tells how an alias' router came to it, with the names that may be told."""
    shown: str | None = None
    """The answer calls it so instead, where whoever asks may not know of it: the alias that they asked for."""


class Catalog(KnownNames):
    """Resolves names."""

    def __init__(
        self,
        base: BaseModelSpec,
        registry: AdapterRegistry,
        profiles: ProfileRegistry | None = None,
        routers: RouterRegistry | None = None,
        names: NameRegistry | None = None,
        most_versions: int = MOST_VERSIONS,
    ) -> None:
        """Empty until it is refreshed.

        Args:
            base: what is served besides.
            registry: of adapters, read whole.
            profiles: of versions.
            routers: of aliases.
            names: read name by name, where the registry holds more than ``most_versions``; None: it never does.
            most_versions: versions, and beyond them names, that are kept in memory.
        """
        super().__init__(registry, profiles, routers, names, most_versions)
        self.base = base
        self._base_target = Target(base.served_name, None)

    async def require_live(self, versions: Iterable[AdapterVersion], scopes: Scopes = EVERYTHING) -> None:
        """Return where the registry still has ``versions``, or is away: files may be gone because a version is.

        Raises:
            ModelNotFound: another replica has deleted one.
        """
        if self._is_answered:
            await self._catch_up()
        for version in versions:
            if not await self._is_live(version):
                is_known = scopes.version(version.ref)
                near = self._near(version.name, scopes) if is_known else []
                raise ModelNotFound(str(version.ref) if is_known else HIDDEN, near)

    def resolve(self, model: str | None, scopes: Scopes = EVERYTHING) -> Target:
        """The version that ``model`` means now.

        Args:
            model: ``sql``, ``sql@3``, ``base:sql``, ``base:sql@3``, a name of the base model, empty or None; or an
                alias of a single target.
            scopes: what whoever asks may know of. What is out of scope is not there, but for the base model, which
                everybody knows of. What an alias means need not be in scope.

        Raises:
            ModelNotFound: with near names.
            NotInScope: it is the base model.
            AmbiguousAlias: an alias of several targets; see `draw`.
        """
        name = (model or "").strip()
        if not name or name in self.base.names:
            if not scopes.base:
                raise NotInScope("the base model")
            return self._base_target
        snapshot = self._snapshot
        short = self.short(name)
        if not scopes.asked(short):
            raise ModelNotFound(name, self._near(short, scopes))
        version = snapshot.defaults.get(short) or snapshot.versions.get(short)
        if version is None:
            if (alias := snapshot.aliases.get(short)) is not None:
                return self._only_target(alias, scopes)
            if (known := self._known(short)) is None:
                raise ModelNotFound(name, self._near(short, scopes))
            version = known.version
        return Target(str(version.ref), version)

    def profile(self, engine_name: str) -> ServingProfile | None:
        """What requests to the version ``name@number`` get, within `found`; None: no profile that is switched on."""
        snapshot = self._snapshot
        if not snapshot.is_whole:
            known = self._known(engine_name) if VersionRef.parse(engine_name) else None
            state = None if known is None else known.profile
        else:
            version = snapshot.versions.get(engine_name)
            state = None if version is None else snapshot.profiles.get(version.id)
        return None if state is None or not state.active else state.profile

    def alias(self, model: str | None, scopes: Scopes = EVERYTHING) -> Alias | None:
        """The alias in scope that ``model`` names, if it names one."""
        alias = self._snapshot.aliases.get(self.short(model or ""))
        return alias if alias is not None and scopes.name(alias.name) else None

    def covers(self, model: str, scopes: Scopes) -> bool:
        """Whether ``model`` names nothing that is out of scope."""
        return covers(model, scopes, self.base.names)

    def shown(self, alias: Alias, scopes: Scopes) -> Alias:
        """``alias`` without the names of targets that are out of scope."""
        return shown_alias(alias, scopes, self.base.names)

    def short(self, model: str) -> str:
        """``model`` without blanks around it and without the base model's name before a colon."""
        found = model.strip()
        prefix = next((f"{name}:" for name in self.base.names if found.startswith(f"{name}:")), "")
        return found.removeprefix(prefix)

    def route(self, alias: Alias, said: Said) -> Route | None:
        """The target that an alias' router chooses for what is said; None of an alias without one."""
        if alias.router is None:
            return None
        fitted = self._snapshot.routers.get(alias.router.digest)
        # Its numbers are gone where another replica changed the alias between two reads: the next look finds out.
        return Route(alias.router.otherwise, "no_text") if fitted is None else fitted.route(said)

    def draw(self, alias: Alias, user: str | None, uniform: Uniform, scopes: Scopes = EVERYTHING) -> str:
        """What ``alias`` means for one request, to be resolved like any ``model``; see `domain.alias.draw`.

        Raises:
            AliasTargetGone: what was drawn is not served any more.
        """
        target = draw(alias, user, uniform).model
        self.require_served(alias, target, scopes)
        return target

    def require_served(self, alias: Alias, target: str, scopes: Scopes = EVERYTHING) -> None:
        """Nothing where a target of ``alias`` is there. Raises AliasTargetGone."""
        if not is_expression(target):
            try:
                self.resolve(target)
            except ModelNotFound as error:
                raise AliasTargetGone(alias.name, target if self.covers(target, scopes) else HIDDEN) from error

    def _only_target(self, alias: Alias, scopes: Scopes) -> Target:
        """The registry lets no alias mean another, so this ends."""
        if len(alias.targets) > 1:
            raise AmbiguousAlias(alias.name, self.shown(alias, scopes).meaning)
        target = alias.targets[0].model
        try:
            return self.resolve(target)
        except ModelNotFound as error:
            if self.covers(target, scopes):
                raise
            raise AliasTargetGone(alias.name, HIDDEN) from error

    def _near(self, name: str, scopes: Scopes) -> list[str]:
        bare = name.split("@", 1)[0][:128]
        if bare in self._snapshot.defaults and scopes.asked(bare):
            return self.names.versions_of(bare)
        also = [self.base.served_name] if scopes.base else []
        if (answers := self._answers.get(Wanted(name))) is not None and (rows := answers.near.get(name)) is not None:
            if rows.versions and scopes.asked(bare):
                return list(rows.versions)
            also = [*filter(scopes.name, rows.names), *also]
        return self.names.near(bare, *also, is_shown=None if scopes.has_every_name else scopes.name)
