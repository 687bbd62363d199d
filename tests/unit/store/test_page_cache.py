"""Reading ahead: all of the weights, and an error where they cannot be read."""

from pathlib import Path

import pytest

from amalgam.store.page_cache import read_ahead
from tests.adapter_factory import write_lora


def bytes_read() -> int:
    """By this process, from files or from memory that holds them."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_all_of_the_weights_are_read(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "adapter", layers=4, rank=16)
    size = (folder / "adapter_model.safetensors").stat().st_size
    before = bytes_read()
    read_ahead(folder)
    assert size <= bytes_read() - before < size + 10_000


def test_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="adapter_model"):
        read_ahead(tmp_path)
