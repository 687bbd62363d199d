"""Errors between a replica and a front: the class, where both have it, its code and its words."""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from amalgam.errors import AmalgamError, adapters, blends, engine, overload, profiles, registry, requests
from amalgam.errors.reported import ReportedError

_MODULES = (adapters, blends, engine, overload, profiles, registry, requests)
"""An engine raises classes of these."""


class ToldError(BaseModel):
    """One error."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Its class has this name."""
    status: int
    code: str
    type: str
    message: str
    param: str | None
    retry_after_s: float | None

    @classmethod
    def of(cls, error: AmalgamError) -> "ToldError":
        """What is told of ``error``."""
        return cls(
            name=type(error).__name__,
            status=error.status,
            code=error.code,
            type=error.type,
            message=error.message,
            param=error.param,
            retry_after_s=error.retry_after_s,
        )

    def as_error(self) -> AmalgamError:
        """The error again, of its class; of `ReportedError` where that is not known here."""
        kind = next((kind for kind in _known() if kind.__name__ == self.name), None)
        if kind is None:
            return ReportedError(self.message, code=self.code, status=self.status, param=self.param)
        # The constructors of classes take the values that explain them, which are in the message by now.
        made = kind.__new__(kind, self.message)
        vars(made).update(self.model_dump(exclude={"name"}))
        return made


def _known() -> Iterator[type[AmalgamError]]:
    for module in _MODULES:
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, AmalgamError):
                yield found
