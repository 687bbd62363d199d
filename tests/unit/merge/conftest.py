"""Fixtures of the merge tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from amalgam.kernels import selection


@pytest.fixture(scope="session")
def monkeypatch_tiles() -> Any:
    """A context in which tiles are of another size."""

    @contextmanager
    def patched(entries: int) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection, "TILE_ENTRIES", entries)
            yield

    return patched
