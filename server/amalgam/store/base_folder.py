"""What the folder of a base model has to hold before anything is started on it."""

from pathlib import Path
from typing import Final

_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_TOKENIZER: Final = ("*token*", "vocab*", "*.model", "tekken*")
"""Families have it under these names: tokenizer.json, vocab.json or vocab.txt, spiece.model, tekken.json."""


def why_incomplete(folder: Path, *, weights: bool = True, tokenizer: bool = True) -> str | None:
    """What ``folder`` lacks of a base model, as the end of a sentence; None where it has all.

    Args:
        folder: with a config.
        weights: whether weights are read from it.
        tokenizer: whether the tokenizer is.
    """
    if weights and not _has(folder, _WEIGHTS):
        return "lacks its weights, the safetensors files. Fetch the model's whole repository"
    if tokenizer and not _has(folder, _TOKENIZER):
        return "lacks its tokenizer. Fetch the model's whole repository, or name another tokenizer with --tokenizer"
    return None


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(found.is_file() for pattern in patterns for found in folder.glob(pattern))
