"""Runs a pattern over a text, in time that grows with the one times the other and never faster."""

from dataclasses import dataclass
from typing import Final

from amalgam.domain.pattern import MAX_INSTRUCTIONS, Assertion, CharSet, Choice, Node, Repeat, Sequence, parse_pattern
from amalgam.errors.evaluations import InvalidPattern

MAX_TEXT: Final = 8192
"""Characters that are searched; what an answer says later does not count."""


@dataclass(slots=True)
class _Split:
    """Go on at both places."""

    first: int
    second: int


_Step = CharSet | Assertion | _Split | None
"""None: found."""


class Pattern:
    """A pattern, ready to be searched for.

    Raises:
        InvalidPattern: it cannot be read, or its counted repeats make it too large.
    """

    def __init__(self, pattern: str) -> None:
        self._steps: list[_Step] = []
        self._work = 0
        self._add(parse_pattern(pattern))
        self._steps.append(None)

    def is_in(self, text: str) -> bool:
        """Whether the pattern is found anywhere in the first ``MAX_TEXT`` characters of ``text``."""
        text = text[:MAX_TEXT]
        waiting: list[int] = []
        for position in range(len(text) + 1):
            ready = self._reach([*waiting, 0], text, position)
            if ready is None:
                return True
            if position < len(text):
                char = text[position]
                waiting = [at + 1 for at in ready if self._takes(at, char)]
        return False

    def _takes(self, at: int, char: str) -> bool:
        step = self._steps[at]
        return isinstance(step, CharSet) and step.takes(char)

    def _reach(self, places: list[int], text: str, position: int) -> list[int] | None:
        """The steps that wait for a character, from ``places`` on; None where the end is among what is reached."""
        seen: set[int] = set()
        ready: list[int] = []
        while places:
            at = places.pop()
            if at in seen:
                continue
            seen.add(at)
            step = self._steps[at]
            if step is None:
                return None
            if isinstance(step, _Split):
                places += (step.first, step.second)
            elif isinstance(step, CharSet):
                ready.append(at)
            elif _holds(step, text, position):
                places.append(at + 1)
        return ready

    def _add(self, node: Node) -> None:
        """Append the steps of ``node``; what comes next follows them."""
        self._work += 1
        if self._work > 4 * MAX_INSTRUCTIONS or len(self._steps) > MAX_INSTRUCTIONS:
            raise InvalidPattern(1, "with its counted repeats written out it is too large")
        if isinstance(node, CharSet | Assertion):
            self._steps.append(node)
        elif isinstance(node, Sequence):
            for part in node.parts:
                self._add(part)
        elif isinstance(node, Choice):
            self._add_choice(node)
        else:
            self._add_repeat(node)

    def _add_choice(self, node: Choice) -> None:
        ends: list[_Split] = []
        for option in node.options[:-1]:
            fork = self._split()
            self._add(option)
            ends.append(self._split())
            fork.second = len(self._steps)
        self._add(node.options[-1])
        for end in ends:
            end.first = end.second = len(self._steps)

    def _add_repeat(self, node: Repeat) -> None:
        for _ in range(node.least):
            self._add(node.body)
        if node.most is None:
            begin = len(self._steps)
            fork = self._split()
            self._add(node.body)
            back = self._split()
            back.first = back.second = begin
            fork.second = len(self._steps)
            return
        forks = []
        for _ in range(node.most - node.least):
            forks.append(self._split())
            self._add(node.body)
        for fork in forks:
            fork.second = len(self._steps)

    def _split(self) -> _Split:
        """A split whose first way is what comes next; the second is set by the caller."""
        split = _Split(len(self._steps) + 1, len(self._steps) + 1)
        self._steps.append(split)
        return split


def _holds(step: Assertion, text: str, position: int) -> bool:
    length = len(text)
    if step.anchor == "start":
        return position == 0
    if step.anchor == "very_end":
        return position == length
    if step.anchor == "end":
        return position == length or (position == length - 1 and text[position] == "\n")
    before = position > 0 and _is_word(text[position - 1])
    after = position < length and _is_word(text[position])
    is_boundary = before is not after
    # On an empty text there is neither a boundary nor an inside, as in `re`.
    return is_boundary if step.anchor == "boundary" else not is_boundary and length > 0


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"
