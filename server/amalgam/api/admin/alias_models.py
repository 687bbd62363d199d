"""Bodies and answers of aliases on the admin plane."""

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amalgam.api.admin.kit import Body, Page, Timestamp
from amalgam.api.admin.router_models import RouterBody, RouterView
from amalgam.domain.alias import MAX_TARGET_LENGTH, MAX_TARGETS, MAX_WEIGHT, Alias, AliasAction, AliasChange

MAX_REVISION: Final = (1 << 31) - 1
_EXPECTED = Field(
    default=None,
    ge=0,
    le=MAX_REVISION,
    description="the revision that the change is meant for; 0: the alias must be new",
    examples=[7],
)


class TargetBody(Body):
    """One target and its weight."""

    model: str = Field(
        min_length=1,
        max_length=MAX_TARGET_LENGTH,
        pattern=r"^[^\x00]*[^\x00\s][^\x00]*$",
        description="written as in a request: a version, an adapter (its default), the base model; no other alias",
        examples=["sql@3"],
    )
    weight: int = Field(
        default=1, ge=1, le=MAX_WEIGHT, strict=True, description="its share is this over the sum of all", examples=[90]
    )


class AliasBody(Body):
    """What a name is to mean."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"targets": [{"model": "sql@3", "weight": 90}, {"model": "sql@4", "weight": 10}]}]
        },
    )

    targets: tuple[TargetBody, ...] | None = Field(default=None, min_length=1, max_length=MAX_TARGETS)
    router: RouterBody | None = Field(default=None, description="what chooses by content, in the place of targets")
    revision: int | None = _EXPECTED

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.targets is None) == (self.router is None):
            raise ValueError("give targets or a router, one of them")
        return self


class RollbackBody(Body):
    """How far to go back; without ``to_revision``, to before the last change."""

    to_revision: int | None = Field(default=None, ge=1, le=MAX_REVISION, examples=[3])
    revision: int | None = _EXPECTED


class TargetView(BaseModel):
    """One target of an alias."""

    model: str = Field(examples=["sql@3"])
    weight: int = Field(examples=[90])
    share: float | None = Field(description="part of all requests, 0 to 1; null where a router chooses", examples=[0.9])


class AliasView(BaseModel):
    """An alias as the API shows it."""

    name: str = Field(examples=["support"])
    revision: int = Field(description="grows with every change; also the header ETag", examples=[7])
    targets: tuple[TargetView, ...]
    router: RouterView | None = Field(description="what chooses among the targets by content; null: their weights do")
    experiment: str | None = Field(description="id of the experiment that it carries, while it runs", examples=[None])
    created_at: Timestamp
    updated_at: Timestamp

    @classmethod
    def of(cls, alias: Alias) -> "AliasView":
        """The view of ``alias``."""
        total, is_routed = alias.total_weight, alias.router is not None
        return cls(
            name=alias.name,
            revision=alias.revision,
            targets=tuple(
                TargetView(model=t.model, weight=t.weight, share=None if is_routed else t.weight / total)
                for t in alias.targets
            ),
            router=None if alias.router is None else RouterView.of(alias.router),
            experiment=None if alias.experiment is None else alias.experiment.id,
            created_at=alias.created_at,
            updated_at=alias.updated_at,
        )


class AliasPageView(Page[AliasView]):
    """One page of aliases, by name."""


class AliasDeletedView(BaseModel):
    """The name that no new request can use any more."""

    deleted: str = Field(examples=["support"])


class ChangeTargetView(BaseModel):
    """One target of an alias at an earlier time."""

    model: str = Field(examples=["sql@2"])
    weight: int = Field(examples=[1])


class AliasChangeView(BaseModel):
    """One change of an alias."""

    revision: int = Field(examples=[6])
    action: AliasAction = Field(examples=["set"])
    targets: tuple[ChangeTargetView, ...]
    router: RouterView | None = Field(description="what chose among them; null: their weights")
    restores: int | None = Field(description="the revision that a rollback brought back", examples=[None])
    created_at: Timestamp

    @classmethod
    def of(cls, change: AliasChange) -> "AliasChangeView":
        """The view of ``change``."""
        return cls(
            revision=change.revision,
            action=change.action,
            targets=tuple(ChangeTargetView(model=t.model, weight=t.weight) for t in change.targets),
            router=None if change.router is None else RouterView.of(change.router),
            restores=change.restores,
            created_at=change.created_at,
        )


class AliasHistoryView(BaseModel):
    """One page of an alias' changes, newest first."""

    data: tuple[AliasChangeView, ...]
    next_cursor: int | None = Field(description="pass it back as cursor for the next page; null on the last")
