"""Errors of aliases: names for weighted targets."""

from collections.abc import Callable, Sequence

from amalgam.errors import Conflict, InvalidRequest, NotFound


class AliasNotFound(NotFound):
    """No alias of that name.

    Next step: ``GET /admin/v1/aliases`` lists what there is.
    """

    code = "alias_not_found"
    param = "name"

    def __init__(self, name: str) -> None:
        super().__init__(f"No alias is named {name!r}. GET /admin/v1/aliases lists what there is.")


class AliasRevisionNotFound(NotFound):
    """An alias has nothing to bring back at ``to_revision``: no such change, or one without targets.

    Next step: the alias' history lists what there is.
    """

    code = "alias_revision_not_found"
    param = "to_revision"

    def __init__(self, name: str, revision: int) -> None:
        super().__init__(
            f"The history of {name!r} has no targets at revision {revision}. "
            f"GET /admin/v1/aliases/{name}/history lists what can be brought back."
        )


class AliasOfAlias(InvalidRequest):
    """A target that is itself an alias.

    Next step: name what that one means.
    """

    code = "alias_of_alias"
    param = "targets"

    def __init__(self, alias: str, target: str) -> None:
        super().__init__(f"{alias!r} cannot mean {target!r}, which is an alias itself. Name what that one means.")


class AmbiguousAlias(InvalidRequest):
    """An alias of several targets where one exact version is needed.

    Next step: name one of the targets.
    """

    code = "ambiguous_alias"
    param = "inputs"

    def __init__(self, alias: str, meaning: str) -> None:
        super().__init__(f"The alias {alias!r} means {meaning}; here one version is needed. Name one of them.")


class AliasNotRouted(InvalidRequest):
    """An explanation of an alias whose targets are drawn by weight.

    Next step: give the alias a router.
    """

    code = "alias_not_routed"
    param = "name"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The alias {name!r} chooses by weight and not by content. "
            f"PUT /admin/v1/aliases/{name} with a router, and ask again."
        )


class PromptsUnread(InvalidRequest):
    """Prompts that the base model was to read, to see which adapter each is for, and did not.

    Next step: the message says why; give examples instead.
    """

    status = 422
    code = "prompts_unread"
    param = "router.by.adapters"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The prompts cannot be told apart by the adapters: {reason}. Give fewer prompts, or examples by candidate."
        )


class AliasTargetGone(NotFound):
    """A request drew a target that does not exist any more.

    Next step: give the alias targets that exist.
    """

    code = "alias_target_gone"
    param = "model"

    def __init__(self, alias: str, target: str) -> None:
        super().__init__(
            f"The alias {alias!r} means {target!r} for this request, which is not served any more. "
            f"PUT /admin/v1/aliases/{alias} with targets that exist, or roll it back."
        )


class AliasTargetInUse(Conflict):
    """An adapter or a version was to be deleted that aliases mean.

    Next step: give the alias other targets first.
    """

    code = "alias_target_in_use"
    param = "name"

    def __init__(self, ref: str, aliases: Sequence[str]) -> None:
        self.ref = ref
        self.aliases = tuple(aliases)
        shown = ", ".join(repr(alias) for alias in aliases[:8]) + (", …" if len(aliases) > 8 else "")
        super().__init__(
            f"{ref} is a target of the alias {shown or 'of somebody else'}. "
            "Give the alias other targets, or delete it, first."
        )

    def shown(self, is_shown: Callable[[str], bool]) -> "AliasTargetInUse":
        """The same with those of the aliases that whoever asks may know of."""
        return AliasTargetInUse(self.ref, tuple(filter(is_shown, self.aliases)))


class StaleRevision(Conflict):
    """The alias was changed meanwhile; 412 where a header named its state.

    Next step: read it again, decide anew.
    """

    code = "stale_revision"
    param = "revision"

    def __init__(self, name: str, expected: int, current: int | None) -> None:
        self.name = name
        self.expected = expected
        self.current = current
        now = f"stands at revision {current}" if current else "does not exist"
        super().__init__(
            f"The alias {name!r} {now}; the change was meant for {expected or 'a new name'}. "
            f"Read it again (GET /admin/v1/aliases/{name}) and decide anew."
        )


class PreconditionFailed(StaleRevision):
    """`StaleRevision` where the state was named in a header."""

    status = 412
    param = "If-Match"


class NothingToRollBack(Conflict):
    """There is no state of the alias before the one it is in.

    Next step: ``to_revision`` names one.
    """

    code = "nothing_to_roll_back"
    param = "name"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The history of {name!r} has no state before the one it is in. "
            f"GET /admin/v1/aliases/{name}/history lists revisions for to_revision."
        )
