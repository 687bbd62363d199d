"""One question of a demo task, and how an answer is cut out of a model's text."""

import re
from dataclasses import dataclass
from typing import Final, Literal

Split = Literal["train", "dev", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "dev", "test")

_FENCE: Final = re.compile(r"\s*```[a-zA-Z0-9]*[ \t]*\n(.*?)\n?```\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TaskItem:
    """A prompt with its reference answer and everything its metric needs.

    Attributes:
        task: Name of the task, ``sql``, ``code`` or ``json``.
        split: The pools its entities and its wording come from; no two splits share a pool.
        template: The skill that is asked for; all splits have the same templates.
        wording: The sentence before entities were put in.
        entities: Every name and value of a pool that the item uses.
        prompt: What the user says.
        reference: A right answer, the one that training teaches.
        evidence: What the metric needs beyond the reference. sql: one script per database; code: one JSON
            ``[arguments, expected]`` per case; json: nothing.
    """

    task: str
    split: Split
    template: str
    wording: str
    entities: frozenset[str]
    prompt: str
    reference: str
    evidence: tuple[str, ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a chat."""
        return [{"role": "user", "content": self.prompt}]


def bare_answer(text: str) -> str:
    """``text`` without surrounding blanks, and without the Markdown fence where it is one fenced block.

    A model is not marked down for a fence; text around the fence is part of the answer, and wrong.
    """
    found = _FENCE.fullmatch(text)
    return (found[1] if found else text).strip()
