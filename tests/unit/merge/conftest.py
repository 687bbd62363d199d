"""Fixtures of the merge tests."""

from contextlib import contextmanager

import pytest

from amalgam.kernels import selection


@pytest.fixture(scope="session")
def monkeypatch_tiles():
    """A context in which tiles are of another size."""

    @contextmanager
    def patched(entries):
        before = selection.TILE_ENTRIES
        selection.TILE_ENTRIES = entries
        try:
            yield
        finally:
            selection.TILE_ENTRIES = before

    return patched
