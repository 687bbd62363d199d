"""Finds the committed demo adapters, in a wheel or in a source checkout."""

from pathlib import Path
from typing import Final

from amalgam.store.file_rules import CONFIG_FILE, WEIGHTS_FILE

PACKAGED: Final = Path(__file__).with_name("adapters")
"""A wheel puts them here."""
CHECKOUT: Final = Path(__file__).parents[3] / "adapters_store" / "demo"
"""A source checkout has them here."""


def demo_adapter_folders(packaged: Path = PACKAGED, checkout: Path = CHECKOUT) -> dict[str, Path]:
    """Name -> PEFT folder of every demo adapter, by name; empty where this installation has none.

    Args:
        packaged: Folder to look in first.
        checkout: Folder to look in where the first does not exist.
    """
    root = packaged if packaged.is_dir() else checkout
    if not root.is_dir():
        return {}
    return {folder.name: folder for folder in sorted(root.iterdir()) if _is_adapter(folder)}


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()
