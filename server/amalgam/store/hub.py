"""Where a base model's files are: a folder as it is, or a hub's repository fetched into the hub's own cache."""

from pathlib import Path
from typing import Final

from amalgam.errors.requests import ModelUnreadable

_PATTERNS: Final = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_DUPLICATES: Final = ("consolidated*.safetensors", "original/*", "*.fp16.safetensors", "*.fp32.safetensors", "onnx/*")
"""They are the same weights once more, in forms that are not read: Mistral's and Meta's own, other precisions, other
engines."""


def local_model(model: str) -> Path:
    """The folder of ``model``; a hub id such as ``org/name`` or ``org/name@revision`` is fetched first.

    Only configuration, tokenizer and safetensors files are fetched; code and pickles are not.

    Raises:
        ModelUnreadable: neither a folder with a config.json nor a repository that can be fetched.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelUnreadable(model, "the folder has no config.json")
        return folder.resolve()
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelUnreadable(model, "there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=list(_PATTERNS), ignore_patterns=list(_DUPLICATES)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelUnreadable(model, f"the hub did not give it ({type(error).__name__})") from error
