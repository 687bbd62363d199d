"""What a merge needs from the outside: where factors come from and where they go. No files are known here."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from amalgam.domain.adapter import AdapterHeader


class TensorSource(Protocol):
    """One input adapter, opened for reading."""

    @property
    def header(self) -> AdapterHeader:
        """Its modules, ranks and true scales."""

    @property
    def digest(self) -> str:
        """Hex digest of its bytes; names it in the lineage and seeds its random masks."""

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """``lora_A`` [rank, in_features] and ``lora_B`` [out_features, rank] of a module, in the stored dtype."""


class AdapterSink(Protocol):
    """Where the merged adapter goes."""

    def write(
        self, tensors: Mapping[str, tuple[Tensor, Tensor]], config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        """Store (A, B) by canonical module name, the adapter's config and its lineage; all or nothing."""
