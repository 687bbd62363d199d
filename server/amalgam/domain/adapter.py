"""Adapters, versions and what their headers say: the nouns that every layer shares."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
MAX_VERSION: Final = 999_999_999
_NAME: Final = re.compile(NAME_PATTERN)
_REF: Final = re.compile(rf"({NAME_PATTERN})@([1-9][0-9]{{0,8}})")


def is_name(text: str) -> bool:
    """Whether ``text`` is an adapter name: 1-128 characters, letters, digits and ``. _ -``, a letter or digit first."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class VersionRef:
    """An exact version, written ``name@3``."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"

    @classmethod
    def parse(cls, text: str) -> "VersionRef | None":
        """Read ``name@3``; None where ``text`` is not of that form."""
        found = _REF.fullmatch(text)
        return cls(found[1], int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class ModuleHeader:
    """One adapted linear module, from headers: ``lora_A`` [rank, in_features], ``lora_B`` [out_features, rank]."""

    name: str
    """Canonical: the base model's own module name, e.g. ``model.layers.0.self_attn.q_proj``."""
    rank: int
    in_features: int
    out_features: int
    scaling: float
    """True scale of B·A: alpha/r, or alpha/√r with rsLoRA, patterns applied."""
    dtype: str
    """As safetensors names it: ``BF16``, ``F16`` or ``F32``."""


@dataclass(frozen=True, slots=True)
class AdapterHeader:
    """What an adapter folder holds, known without reading a tensor."""

    modules: Mapping[str, ModuleHeader]
    """By canonical module name."""
    base_model: str | None
    """``base_model_name_or_path`` of its config; informative only."""
    weight_bytes: int

    @property
    def rank(self) -> int:
        """The largest rank of its modules; 0 where it has none."""
        return max((module.rank for module in self.modules.values()), default=0)


@dataclass(frozen=True, slots=True)
class BaseModelSpec:
    """The frozen weights that adapters attach to."""

    served_name: str
    fingerprint: str
    """SHA-256 over its config and its tensor names and shapes, in hex."""
    linear_shapes: Mapping[str, tuple[int, int]]
    """Canonical module name -> (out_features, in_features) of every two-dimensional ``.weight``."""
    max_lora_rank: int
    vocabulary_size: int | None = None
    """Token ids are below it; None where the config does not say."""


class AdapterVersion(BaseModel):
    """An immutable version: a row of the registry, and the truth about what its bytes are."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(description="unique over all adapters and never used again; the engine's LoRA id")
    name: str
    number: int = Field(ge=1)
    digest: str = Field(description="SHA-256 of the stored files, in hex")
    rank: int
    size_bytes: int
    module_count: int
    base_fingerprint: str
    source: str = Field(description="upload | file | demo | merge")
    created_at: datetime
    recipe_digest: str | None = None
    lineage: dict[str, Any] | None = Field(default=None, description="of a merged version: recipe, inputs, versions")
    warnings: tuple[str, ...] = ()

    @property
    def ref(self) -> VersionRef:
        """``name@number``."""
        return VersionRef(self.name, self.number)


class Adapter(BaseModel):
    """A named line of versions and its default version."""

    model_config = ConfigDict(frozen=True)

    name: str
    default_version: int | None
    description: str = ""
    created_at: datetime
    versions: tuple[AdapterVersion, ...] = ()
