"""Every test that the page of promises names exists, and every fault has its row."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/promises.md").read_text()


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 60
    for path, name in named:
        assert (ROOT / path).is_file(), path
        if name:
            assert re.search(rf"^\s*(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (path, name)


def test_every_row_names_a_test_and_every_fault_has_a_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.endswith("| test |")]
    assert all("`tests/" in row for row in rows)
    told: set[int] = set()
    for row in rows:
        if found := re.match(r"\| F(\d+)(?:(?: to |, )F(\d+))?:", row):
            told |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    assert told == set(range(1, 49))
