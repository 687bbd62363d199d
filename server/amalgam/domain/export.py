"""Exports: what is asked for, and the record that lies beside the weights and says what they are."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.recipe import Recipe

RECORD_FILE: Final = "amalgam_export.json"
"""The record in an export's folder has this name."""

ExportDtype = Literal["base", "bfloat16", "float16", "float32"]
"""The checkpoint's floating-point tensors are stored in it; ``base``: each in what the base model has it in."""

MaxShardBytes = Annotated[int, Field(ge=1 << 20, le=1 << 40)]

_DIGEST_DOMAIN: Final = b"amalgam export 1\n"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportSpec(_Frozen):
    """An export, described completely: the base model, what is added to it, and how it is stored."""

    recipe: Recipe = Field(description="completed, inputs pinned; one input as it is stands for itself")
    dtype: ExportDtype = "base"
    max_shard_bytes: MaxShardBytes = 5_000_000_000
    dequantize: bool = Field(default=False, description="whether quantised weights of the base model are unpacked")
    input_digests: dict[str, str] = Field(
        description="digests of every adapter's files; a folder outlives what names mean"
    )
    base_fingerprint: str
    base_weights_digest: str | None = Field(
        description="where the base model is an export, and so known by its weights"
    )

    def digest(self) -> str:
        """SHA-256, in hex, that names the result: equal specs make equal checkpoints of one base model."""
        described = self.model_dump(mode="json") | {"recipe": self.recipe.digest()}
        if not self.dequantize:
            # Records that are older than the field keep their digests.
            del described["dequantize"]
        text = json.dumps(described, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(_DIGEST_DOMAIN + text.encode()).hexdigest()


class ExportInput(_Frozen):
    """One adapter that went in."""

    digest: str = Field(description="SHA-256 of its files, in hex")
    recipe: dict[str, Any] | None = Field(default=None, description="what a merged version was merged from")


class ExportAdded(_Frozen):
    """What was added to the base model, and what of it was cut off on the way."""

    rank: int = Field(description="largest rank over the modules that was added")
    exact_rank: int = Field(description="largest rank that there would be if nothing were cut")
    energy_kept: float | None = Field(
        default=None, description="share of the squared singular values; null where nothing had to be cut"
    )
    warnings: tuple[str, ...] = Field(default=(), description="what is to be known of it, in sentences")


class ExportBase(_Frozen):
    """The checkpoint that was added to."""

    fingerprint: str = Field(description="architecture and shapes, as adapters are matched by")
    weights_digest: str = Field(description="its very weights; see ExportRecord")
    record: dict[str, Any] | None = Field(default=None, description="its own record, where it was exported itself")


class ExportRecord(_Frozen):
    """What lies in an export's folder, and where it comes from.

    ``weights_digest`` is the SHA-256 over every tensor's name, dtype, shape and SHA-256, in order of name: equal
    weights have equal digests, however they are cut into files. The fingerprint is that of the architecture, so it is
    the base model's: adapters that fit one fit the other, and only the digest tells the weights apart.
    """

    format: Literal[1] = 1
    export_digest: str
    dtype: ExportDtype
    dequantized: bool = Field(default=False, description="whether quantised weights of the base model were unpacked")
    recipe: dict[str, Any]
    recipe_digest: str
    inputs: Mapping[str, ExportInput] = Field(description="inputs by the recipe's spelling")
    added: ExportAdded | None = Field(
        default=None, description="what was added; null in records that are older than this field"
    )
    base: ExportBase
    fingerprint: str
    weights_digest: str
    tensor_count: int
    changed_modules: int = Field(description="linear modules that something was added to")
    weight_bytes: int
    shard_count: int
    versions: Mapping[str, str] = Field(description="versions of the programs that computed it")


def weights_digest(tensors: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """SHA-256, in hex, over (dtype, shape, SHA-256 of its bytes) of every tensor, in order of name."""
    described = [[name, dtype, list(shape), digest] for name, (dtype, shape, digest) in sorted(tensors.items())]
    return hashlib.sha256(json.dumps(described, separators=(",", ":")).encode()).hexdigest()
