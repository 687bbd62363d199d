"""A row of the table of what is replaced in vLLM, and when a row takes effect."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Stage = Literal["begin", "wrapper", "waits", "experts", "layers", "steps", "objects"]
"""It tells when a symbol is replaced; see `STAGES`."""

STAGES: Final[Mapping[Stage, str]] = {
    "begin": "when vLLM loads its plugins, on CPU",
    "wrapper": "when vLLM loads its plugins, on CPU; not with `AMALGAM_CPU_LORA=stock`",
    "waits": "when vLLM loads its plugins, on CPU; not with `AMALGAM_ENGINE_WAITS=awake`",
    "experts": "when a worker on CPU begins, before it builds a model",
    "layers": "when a worker on CPU is about to build LoRA layers",
    "steps": "when a worker on CPU has its model, before its first step",
    "objects": "on one object of vLLM's, or anew each time, whenever our code that the row names runs",
}
"""A patch that `apply` makes stays for the rest of its process's life; ``objects`` are put by `put`."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One symbol of vLLM that is replaced; of two rows with one symbol the later one calls what the earlier put.

    Attributes:
        symbol: of the tested vLLM, as ``module:name`` or ``module:Class.name``.
        stage: see `Stage`.
        replacement: ours, as ``module:name``: a function of the original that returns what stands in its place; in the
            stage ``objects``, what calls `put`.
        why: the reason, as what follows "because".
        test: the test that fails without it, as pytest names it.
    """

    symbol: str
    stage: Stage
    replacement: str
    why: str
    test: str

    @property
    def name(self) -> str:
        """The attribute that is assigned to."""
        return self.symbol.replace(":", ".").rpartition(".")[2]
