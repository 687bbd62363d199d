"""Adapters, versions and what their headers say: the nouns that every layer shares."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.delta_bound import DeltaBound

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
MAX_VERSION: Final = 999_999_999
VersionSource = Literal["upload", "file", "demo", "merge"]
"""It tells where the files of a version came from."""
ROUTERS: Final = frozenset({"gate", "router", "shared_expert_gate"})
"""These are the last parts of their names, beside ``experts``."""
_SPELLED: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_TEXT_PARTS: Final = ("model.language_model.", "model.text_model.", "language_model.")
"""Names of modules of text begin so where only a model with other parts has them."""
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
    """It is canonical: the base model's own module name, e.g. ``model.layers.0.self_attn.q_proj``."""
    rank: int
    in_features: int
    out_features: int
    scaling: float
    """It is the true scale of B·A: alpha/r, or alpha/√r with rsLoRA, patterns applied."""
    dtype: str
    """It is named as by safetensors: ``BF16``, ``F16`` or ``F32``."""


@dataclass(frozen=True, slots=True)
class AdapterHeader:
    """What an adapter folder holds, known without reading a tensor."""

    modules: Mapping[str, ModuleHeader]
    """The keys are canonical module names."""
    base_model: str | None
    """It is ``base_model_name_or_path`` of its config, informative only."""
    weight_bytes: int
    task_type: str | None = None
    """It is ``task_type`` of its config, such as ``CAUSAL_LM``, informative only."""

    @property
    def rank(self) -> int:
        """The largest rank of its modules; 0 where it has none."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def dtype(self) -> str | None:
        """The narrowest type that holds every factor, as a recipe spells it; None where there are none."""
        return widest(_SPELLED.get(module.dtype) for module in self.modules.values())


def widest(dtypes: Iterable[str | None]) -> str | None:
    """The narrowest of bfloat16, float16 and float32 that holds every value of ``dtypes``.

    Bfloat16 and float16 meet in float32. None where one of ``dtypes`` is None, which is not known, or there are none.
    """
    found = set(dtypes)
    if not found or None in found:
        return None
    return found.pop() if len(found) == 1 else "float32"


def unchanged(name: str) -> str:
    """``name`` itself: of a base model whose modules have had one name at all times."""
    return name


@dataclass(frozen=True)
class BaseModelSpec:
    """The frozen weights that adapters attach to."""

    served_name: str
    fingerprint: str
    """It is the SHA-256 over its config and its tensor names and shapes, in hex."""
    linear_shapes: Mapping[str, tuple[int, int]]
    """It maps the canonical name of every linear module, quantised or not, to (out_features, in_features)."""
    max_lora_rank: int
    vocabulary_size: int | None = None
    """Token ids are below it; None where the config does not say."""
    context_tokens: int | None = None
    """The model was made for so much of prompt plus answer; None where the config does not say."""
    delta_bound: DeltaBound = field(default_factory=DeltaBound, compare=False)
    """It bounds what an adapter may change."""
    folder: Path | None = None
    """Its files lie here; None where that is not known."""
    rename: Callable[[str], str] = field(default=unchanged, compare=False)
    """It gives the canonical name for any spelling of a module or of a tensor in it."""
    other_names: tuple[str, ...] = ()
    """Requests may call it so besides, such as by its id at the hub."""
    adapts_experts: bool = True
    """It tells whether this engine can put LoRA on routed experts and their routers."""
    reads: frozenset[str] = frozenset()
    """It names what the model reads beside text: ``image``, ``audio``."""
    fused: frozenset[str] = frozenset()
    """These of ``linear_shapes`` are the matrices of experts that lie in one tensor of the checkpoint."""
    untaken: frozenset[str] = frozenset()
    """The engine's class of this model puts no LoRA on these modules, as far as that is known."""
    adapts_towers: bool = True
    """It tells whether this engine can put LoRA on what reads pictures and sounds, and on what joins it to the text."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it answers to."""
        return (self.served_name, *self.other_names)

    def routes(self, module: str) -> bool:
        """Whether ``module`` is a part of routed experts, or decides which of them are asked."""
        parent, _, last = module.rpartition(".")
        return ".experts." in module or (last in ROUTERS and parent in self._routed)

    def reads_media(self, module: str) -> bool:
        """Whether ``module`` is a part of what reads pictures and sounds, or joins it to the text."""
        return self._has_towers and not module.startswith((*_TEXT_PARTS, "lm_head"))

    @cached_property
    def plain_modules(self) -> frozenset[str]:
        """Its linear modules beside routed experts, what routes to them, and what reads pictures or sounds."""
        return frozenset(name for name in self.linear_shapes if not self.routes(name) and not self.reads_media(name))

    @cached_property
    def _has_towers(self) -> bool:
        return any(name.startswith(_TEXT_PARTS) for name in self.linear_shapes)

    @cached_property
    def _routed(self) -> frozenset[str]:
        """The blocks that have experts."""
        return frozenset(name.partition(".experts.")[0] for name in self.linear_shapes if ".experts." in name)


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
    source: VersionSource
    created_at: datetime
    recipe_digest: str | None = None
    lineage: dict[str, Any] | None = Field(default=None, description="recipe, inputs and versions of a merged version")
    warnings: tuple[str, ...] = ()
    dtype: str | None = Field(
        default=None, description="type of its factors; None of one that an older release registered"
    )

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
