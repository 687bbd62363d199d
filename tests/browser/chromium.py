"""The browser that tests drive: Debian's Chromium, or another one that is there."""

import shutil
from collections.abc import Mapping
from typing import Any, Final

import pytest

PATIENCE_MS: Final = 60_000
"""For whatever is waited for on a page; machines that do other work are slow."""
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")


def launch_options() -> Mapping[str, Any]:
    """How Playwright starts the browser. Skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: the console is not looked at")
    # Without a sandbox of its own: tests run as root in containers, and open nothing but pages of ours.
    return {"executable_path": found, "args": ["--no-sandbox", "--disable-dev-shm-usage"]}
