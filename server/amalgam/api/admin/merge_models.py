"""Bodies and answers of merges on the admin plane."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amalgam.api.admin.fit_models import FitBody
from amalgam.api.admin.kit import NO_NUL, Body, NewName
from amalgam.api.admin.probe_models import ProbeBody, RequireBody
from amalgam.domain.diagnostics import MergeForecast
from amalgam.domain.expression import SUM_METHOD, parse_expression
from amalgam.domain.fit_forecast import FitForecast
from amalgam.domain.recipe import MAX_INPUTS, Recipe, RecipeInput
from amalgam.domain.skill_probe import KeptRecord, unmeasured
from amalgam.merge.plan import MergePlan
from amalgam.services.fits import FitPlan


class RecipeBody(Body):
    """What is to be computed: a recipe or an expression, and not both."""

    expression: str | None = Field(default=None, max_length=4096, examples=["sql + 0.5*json"])
    recipe: Recipe | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.expression is None) == (self.recipe is None):
            raise ValueError("give either expression or recipe")
        return self

    def described(self) -> Recipe:
        """The recipe, however it was written.

        Raises:
            InvalidExpression: names the column.
        """
        if self.recipe is not None:
            return self.recipe
        assert self.expression is not None
        return parse_expression(self.expression)


class MergeBody(RecipeBody):
    """A merge: its name, and a recipe or an expression, or the inputs whose weights are to be fitted."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"name": "sql-json", "expression": "sql + 0.5*json"},
                {
                    "name": "sql-json",
                    "recipe": {
                        "method": "task_arithmetic",
                        "inputs": [{"adapter": "sql@1", "weight": 1.0}, {"adapter": "json", "weight": 0.5}],
                        "output": {"rank": 16},
                    },
                },
                {
                    "name": "sql-json",
                    "expression": "sql + 0.5*json",
                    "probe": {"prompts": {"sql": ["How many users are there?"], "json": ["Text: … Shape: {…}"]}},
                    "require": {"kept": 0.9},
                },
                {
                    "name": "sql-json",
                    "inputs": ["sql", "json"],
                    "fit": {"prompts": {"sql": ["How many users are there?"], "json": ["Text: … Shape: {…}"]}},
                },
            ]
        },
    )

    name: NewName
    set_default: bool = True
    probe: ProbeBody | None = Field(
        default=None, description="what the merge keeps of its inputs is measured with it, and goes into the lineage"
    )
    require: RequireBody | None = Field(default=None, description="a merge that keeps less fails, and is not published")
    inputs: tuple[Annotated[str, Field(min_length=1, max_length=256, pattern=NO_NUL)], ...] | None = Field(
        default=None,
        min_length=2,
        max_length=MAX_INPUTS,
        description="adapters whose weighted sum is the merge, with `fit`",
    )
    fit: FitBody | None = Field(
        default=None,
        description="the merge is made to keep what its inputs do on prompts of theirs: each input is fitted to what "
        "it is given there, or weights are searched first, from those of the recipe",
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        given = [self.expression, self.recipe, self.inputs]
        if sum(one is not None for one in given) != 1:
            raise ValueError("give one of expression, recipe and inputs")
        if self.inputs is not None and self.fit is None:
            raise ValueError("inputs alone need a fit, which says what to keep of each; else give an expression")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.require is not None and self.probe is None and self.fit is None:
            raise ValueError("require.kept needs a probe or a fit, whose prompts say what is kept")
        return self

    def described(self) -> Recipe:
        """The recipe, however it was written.

        Raises:
            InvalidExpression: names the column.
            DuplicateInput: of inputs that are given twice.
        """
        if self.inputs is None:
            return super().described()
        return Recipe(method=SUM_METHOD, inputs=tuple(RecipeInput(adapter=name) for name in self.inputs))


class PlanView(BaseModel):
    """What a merge would do."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "recipe": {"method": "task_arithmetic", "inputs": [{"adapter": "sql@1"}, {"adapter": "json@1"}]},
                    "recipe_digest": "5b0c…",
                    "space": "concat",
                    "rank": 16,
                    "exact_rank": 16,
                    "modules": 210,
                    "partial_modules": {},
                    "input_bytes": 19529728,
                    "output_bytes": 9764864,
                    "warnings": [],
                    "forecast": {
                        "is_complete": True,
                        "modules_seen": 210,
                        "memory_bytes": 46000000,
                        "compute_s": 0.7,
                        "energy_kept": 1.0,
                        "overall": {"inputs": ["sql@1", "json@1"], "retention": [1.01, 0.52]},
                        "modules": [],
                    },
                }
            ]
        }
    )

    recipe: dict[str, Any] = Field(description="completed, and pinned to exact versions")
    recipe_digest: str = Field(description="names the result: the same recipe is built once")
    space: str
    rank: int = Field(description="largest rank of the result; an upper bound where the recipe asks for energy")
    exact_rank: int = Field(description="largest rank that the result would have if nothing were cut")
    modules: int
    partial_modules: dict[str, tuple[str, ...]] = Field(description="module to the inputs that do not adapt it")
    input_bytes: int
    output_bytes: int
    warnings: tuple[str, ...]
    forecast: MergeForecast | None = Field(
        description="memory, time and diagnostics, of the inputs as they are; null with diagnostics=false"
    )
    fit: FitForecast | None = Field(default=None, description="what the fit will take; null without one")
    kept: KeptRecord | None = Field(
        default=None,
        description="what it would keep of its inputs, tried as a blend; null without a probe, and with a fit",
    )

    @classmethod
    def of(cls, plan: MergePlan, forecast: MergeForecast | None, kept: KeptRecord | None = None) -> "PlanView":
        """The view of ``plan``."""
        said = unmeasured(plan.recipe) if kept is None else kept.warnings()
        return cls._of(plan, forecast, plan.recipe.digest(), said, kept=kept)

    @classmethod
    def of_fit(cls, found: FitPlan, forecast: MergeForecast | None) -> "PlanView":
        """The view of a merge with a fit."""
        return cls._of(found.plan, forecast, found.digest, found.fit.warnings(), fit=found.fit)

    @classmethod
    def _of(
        cls,
        plan: MergePlan,
        forecast: MergeForecast | None,
        digest: str,
        said: tuple[str, ...],
        *,
        kept: KeptRecord | None = None,
        fit: FitForecast | None = None,
    ) -> "PlanView":
        return cls(
            recipe=plan.recipe.model_dump(mode="json"),
            recipe_digest=digest,
            space=plan.space,
            rank=plan.rank,
            exact_rank=plan.exact_rank,
            modules=len(plan.modules),
            partial_modules=dict(plan.partial),
            input_bytes=plan.input_bytes,
            output_bytes=plan.output_bytes,
            warnings=(*plan.warnings, *said),
            forecast=forecast,
            fit=fit,
            kept=kept,
        )
