"""The recipe of a merge: a frozen, pure description whose digest names the result."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from amalgam.domain.adapter import VersionRef
from amalgam.errors.merging import DuplicateInput, NoInputs, TooManyInputs

MAX_INPUTS: Final = 64
"""One recipe has at most so many adapters; a merge of merges goes further."""

_DIGEST_DOMAIN: Final = b"amalgam recipe 1\n"
_LAYERS: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_PATH_COMPONENT_NUMBER: Final = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")

Finite = Annotated[float, Field(allow_inf_nan=False), AfterValidator(lambda value: value + 0.0)]
"""It is a finite number; -0.0 is read as 0.0, so that equal recipes have equal digests."""
Parameter = bool | int | Finite | Annotated[str, Field(max_length=256)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightRule(_Frozen):
    """One line of a filtered weight: the value, and the modules it is for."""

    value: Finite | Annotated[tuple[Finite, ...], Field(min_length=1, max_length=1024)]
    filter: str | None = Field(default=None, max_length=256, description="substring of the module name")
    layers: str | None = Field(default=None, pattern=r"^\d{1,5}(-\d{1,5})?$", description="'7' or '0-15', inclusive")

    def matches(self, module: str, layer: int | None) -> bool:
        """Whether this line is for ``module``, which lies in ``layer`` (None: outside the layers)."""
        if self.filter is not None and self.filter not in module:
            return False
        if self.layers is None:
            return True
        found = _LAYERS.fullmatch(self.layers)
        assert found is not None
        first = int(found[1])
        return layer is not None and first <= layer <= int(found[2] or first)


Weight = (
    Finite
    | Annotated[tuple[Finite, ...], Field(min_length=1, max_length=1024)]
    | Annotated[tuple[WeightRule, ...], Field(min_length=1, max_length=1024)]
)


class RecipeInput(_Frozen):
    """One adapter of a recipe and its signed weight."""

    adapter: str = Field(min_length=1, max_length=4096, description="name, name@3, or, offline, a folder")
    weight: Weight = Field(default=1.0, description="number, gradient over depth, or list of filters (first match)")

    def weight_at(self, module: str, layer_count: int) -> float:
        """The weight for ``module`` of a model of ``layer_count`` layers; 0 where no filter matches."""
        layer = layer_of(module)
        weight: float | tuple[float, ...] | tuple[WeightRule, ...] = self.weight
        if isinstance(weight, tuple) and isinstance(weight[0], WeightRule):
            rules = (rule for rule in weight if isinstance(rule, WeightRule))
            weight = next((rule.value for rule in rules if rule.matches(module, layer)), 0.0)
        if isinstance(weight, tuple):
            numbers = tuple(value for value in weight if not isinstance(value, WeightRule))
            return _gradient(numbers, layer, layer_count) if numbers else 0.0
        return weight


Dtype = Literal["bfloat16", "float16", "float32"]
DTYPES: Final = get_args(Dtype)
"""An adapter may be stored in these."""


class EnergyRank(_Frozen):
    """Per module, the smallest rank that keeps this share of the energy."""

    energy: float = Field(gt=0, le=1)


class Output(_Frozen):
    """How the merged adapter is written."""

    rank: Literal["auto"] | Annotated[int, Field(ge=1, le=512)] | EnergyRank = "auto"
    dtype: Dtype = "bfloat16"
    min_energy: float | None = Field(default=None, gt=0, le=1, description="refuse a result that keeps less")
    uniform_rank: bool = Field(
        default=False, description="pad all modules to one rank with zeros, for readers that know no rank patterns"
    )


class Recipe(_Frozen):
    """A merge, described completely: the same recipe on the same pinned inputs is the same adapter.

    Raises:
        NoInputs, DuplicateInput, TooManyInputs: on construction.
    """

    method: str = Field(default="linear", max_length=64)
    space: str | None = Field(
        default=None, max_length=32, description="space of the merge; None: the method's own default"
    )
    inputs: tuple[RecipeInput, ...]
    parameters: Mapping[str, Parameter] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0, lt=1 << 64, description="seed of the random methods")
    orthogonalize_against: tuple[str, ...] = Field(default=(), max_length=16, description="adapters to keep clear of")
    orthogonalize_rows: bool = Field(
        default=False, description="whether to keep clear of the rows of their A too, not of B's columns alone"
    )
    norm_balance: bool = Field(default=False, description="bring every input to the mean norm before merging")
    calibrate: Literal["pico"] | None = Field(default=None, description="damp directions the inputs share")
    allow_base_mismatch: bool = False
    output: Output = Output()

    @model_validator(mode="after")
    def _check_inputs(self) -> "Recipe":
        if not self.inputs:
            raise NoInputs
        if len(self.inputs) > MAX_INPUTS:
            raise TooManyInputs(len(self.inputs), MAX_INPUTS)
        seen: set[str] = set()
        for entry in self.inputs:
            if entry.adapter in seen:
                raise DuplicateInput(entry.adapter)
            seen.add(entry.adapter)
        return self

    @property
    def adapters(self) -> tuple[str, ...]:
        """Every adapter the recipe names, inputs first, each once."""
        return tuple(dict.fromkeys((*(entry.adapter for entry in self.inputs), *self.orthogonalize_against)))

    def canonical_json(self) -> str:
        """One text for equal recipes: keys sorted, no blanks, defaults left out."""
        return json.dumps(_canonical(self.model_dump(mode="json", exclude_defaults=True)), **_JSON)

    def digest(self) -> str:
        """SHA-256 of the canonical form, in hex; meaningful once the recipe is completed and pinned."""
        return hashlib.sha256(_DIGEST_DOMAIN + self.canonical_json().encode()).hexdigest()

    def pin(self, versions: Mapping[str, VersionRef]) -> "Recipe":
        """The recipe with every name replaced by its exact version.

        Args:
            versions: For each entry of ``adapters``, the version it means now.

        Raises:
            DuplicateInput: two inputs mean one version.
        """
        inputs = [entry.model_copy(update={"adapter": str(versions[entry.adapter])}) for entry in self.inputs]
        against = tuple(dict.fromkeys(str(versions[name]) for name in self.orthogonalize_against))
        pinned = self.model_dump() | {"inputs": inputs, "orthogonalize_against": against}
        return Recipe.model_validate(pinned)


_JSON: Final[dict[str, Any]] = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": True, "allow_nan": False}


def layer_of(module: str) -> int | None:
    """The layer a module lies in: the first number among its name's components; None where there is none."""
    found = _PATH_COMPONENT_NUMBER.search(module)
    return int(found[1]) if found else None


def _gradient(values: tuple[float, ...], layer: int | None, layer_count: int) -> float:
    """Linear interpolation of ``values`` over depth; what lies outside the layers takes the last value."""
    if layer is None or len(values) == 1:
        return values[-1]
    position = min(layer / max(layer_count - 1, 1), 1.0) * (len(values) - 1)
    left = min(int(position), len(values) - 2)
    return values[left] + (values[left + 1] - values[left]) * (position - left)


def _canonical(value: Any) -> Any:
    """Whole floats as integers, so that 1 and 1.0 are one recipe."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value
