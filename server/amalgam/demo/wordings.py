"""The sentences of a template, apart by split."""

from collections.abc import Mapping

from amalgam.demo.task_item import Split

Wordings = Mapping[Split, tuple[str, ...]]


def wordings(train: str, dev: str, test: str) -> Wordings:
    """Three pools, from texts with one sentence a line."""
    return {"train": _lines(train), "dev": _lines(dev), "test": _lines(test)}


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())
