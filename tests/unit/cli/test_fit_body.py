"""What `amalgam merges create --fit` sends, by what its file holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from amalgam.cli.merges import fit_body
from amalgam.errors.terminal import FileUnusable


def file_of(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(content))
    return path


def test_prompts_are_kept_and_items_are_scored(tmp_path: Path) -> None:
    prompts = {"sql": ["a", {"prompt": "b"}], "json": ["c"]}
    assert fit_body(file_of(tmp_path, prompts), None, None) == {"by": "kept", "prompts": prompts}
    items = {"sql": [{"prompt": "b", "reference": "x"}], "json": [{"prompt": "c", "pattern": "x"}]}
    assert fit_body(file_of(tmp_path, items), None, 9.0) == {"by": "items", "items": items, "budget_s": 9.0}


def test_an_evaluation_lends_items(tmp_path: Path) -> None:
    assert fit_body(None, "eval-1", None) == {"by": "items", "evaluation": "eval-1"}
    assert fit_body(None, None, 5.0) is None


@pytest.mark.parametrize("content", [["a"], "a", {"sql": ["a"], "json": [{"prompt": "c", "reference": "x"}]}])
def test_a_file_that_is_neither_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(FileUnusable):
        fit_body(file_of(tmp_path, content), None, None)


def test_a_file_of_json_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(FileUnusable):
        fit_body(path, None, None)
