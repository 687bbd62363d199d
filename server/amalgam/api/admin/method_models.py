"""The table of merge methods as the API shows it."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field

from amalgam.merge.methods import MethodSpec, Space, Weights


class MethodView(BaseModel):
    """A row of the table of merge methods."""

    name: str = Field(examples=["ties"])
    summary: str = Field(examples=["trim, elect signs, average what agrees"])
    spaces: tuple[Space, ...] = Field(description="where the rule can be applied; the first is the default")
    weights: Weights = Field(description="what the weights of its inputs mean", examples=["relative"])
    parameters: dict[str, Any] = Field(
        description="what it takes, as a JSON schema", examples=[{"properties": {"density": {}}}]
    )
    min_inputs: int = Field(examples=[1])
    max_inputs: int | None = Field(examples=[None])
    random: bool = Field(description="whether it draws, and takes a seed")
    blends: bool = Field(description="whether a request's model may name it by default")
    paper: str = Field(description="where the method is described; empty: nowhere in particular")

    @classmethod
    def of(cls, spec: MethodSpec) -> "MethodView":
        """The view of ``spec``."""
        return cls(
            parameters=spec.parameters.model_json_schema(by_alias=True),
            **{name: getattr(spec, name) for name in cls.model_fields if name != "parameters"},
        )


class MethodListView(BaseModel):
    """Every method, in the order of the table."""

    data: tuple[MethodView, ...]

    @classmethod
    def of(cls, specs: Iterable[MethodSpec]) -> "MethodListView":
        """The views of ``specs``."""
        return cls(data=tuple(map(MethodView.of, specs)))
