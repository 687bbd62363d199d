"""A base model whose folder lacks what the engine reads ends the start in a sentence, before there is an engine."""

from argparse import Namespace
from pathlib import Path

import pytest

from amalgam.cli.doctor_model import check_model
from amalgam.cli.serve import require_whole
from amalgam.errors.adapters import BaseModelUnreadable

FILES = ("config.json", "model.safetensors", "tokenizer.json")
READING = {"load_format": "auto", "tokenizer": None, "skip_tokenizer_init": False}


def folder_without(missing: str, folder: Path) -> Path:
    for name in FILES:
        if name != missing:
            (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("missing", "words"), [("model.safetensors", "lacks its weights"), ("tokenizer.json", "lacks its tokenizer")]
)
def test_what_is_missing_is_named_with_the_next_step(missing: str, words: str, tmp_path: Path) -> None:
    folder = folder_without(missing, tmp_path)
    with pytest.raises(BaseModelUnreadable, match=words) as refused:
        require_whole(folder, Namespace(**READING))
    assert "Fetch the model's whole repository" in refused.value.message
    [found] = check_model(folder)
    assert found.verdict == "error"
    assert "Fetch the model's whole repository" in found.text


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "spiece.model", "tekken.json", "o200k.tiktoken"])
def test_a_tokenizer_has_many_names(name: str, tmp_path: Path) -> None:
    (folder_without("tokenizer.json", tmp_path) / name).write_text("")
    require_whole(tmp_path, Namespace(**READING))


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("model.safetensors", {"load_format": "dummy"}),
        ("tokenizer.json", {"tokenizer": "elsewhere"}),
        ("tokenizer.json", {"skip_tokenizer_init": True}),
    ],
)
def test_what_is_not_read_from_the_folder_may_be_missing(missing: str, said: dict[str, object], tmp_path: Path) -> None:
    require_whole(folder_without(missing, tmp_path), Namespace(**READING | said))
