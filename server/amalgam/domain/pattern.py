r"""Patterns for text that a model wrote: regular expressions without what can take for ever.

Python's own matcher backtracks, and a pattern such as ``(a+)+$`` keeps it busy for longer than the sun will shine. Here
a pattern becomes a small machine that reads the text once: time grows with pattern times text, whatever they are.
Groups, alternatives, classes, ``* + ? {m,n}``, ``^ $ \b \B \A \Z`` and the usual escapes mean what they mean in
`re`, with no flags set; references back and looks around, which no such machine can do, are refused.
"""

from dataclasses import dataclass
from typing import Final, Literal

from amalgam.errors.evaluations import InvalidPattern

MAX_PATTERN: Final = 256
"""Longest pattern, characters."""
MAX_INSTRUCTIONS: Final = 512
"""Largest machine; counted repeats are written out."""
_MAX_DEPTH: Final = 32
_MAX_REPEAT: Final = 256

Anchor = Literal["start", "end", "very_end", "boundary", "inside"]
_ANCHORS: Final[dict[str, Anchor]] = {"A": "start", "Z": "very_end", "b": "boundary", "B": "inside"}
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_HEX_DIGITS: Final = {"x": 2, "u": 4}


@dataclass(frozen=True, slots=True)
class CharSet:
    """The characters that one step takes."""

    ranges: tuple[tuple[str, str], ...] = ()
    """First and last of each, inclusive."""
    classes: str = ""
    """Letters of ``d D w W s S``."""
    negated: bool = False

    def takes(self, char: str) -> bool:
        """Whether ``char`` is one of them."""
        found = any(first <= char <= last for first, last in self.ranges) or any(
            _in_class(char, name) for name in self.classes
        )
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class Assertion:
    """A condition on a place between two characters."""

    anchor: Anchor


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of them."""

    options: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Between ``least`` and ``most`` times; None: no end."""

    body: "Node"
    least: int
    most: int | None


Node = CharSet | Assertion | Sequence | Choice | Repeat


def _in_class(char: str, name: str) -> bool:
    kind = name.lower()
    if kind == "d":
        found = char.isdecimal()
    elif kind == "w":
        found = char.isalnum() or char == "_"
    else:
        found = char.isspace()
    return found is name.islower()


def parse_pattern(pattern: str) -> Node:
    """Read ``pattern``.

    Raises:
        InvalidPattern: with the place at fault.
    """
    if len(pattern) > MAX_PATTERN:
        raise InvalidPattern(MAX_PATTERN + 1, f"it is longer than {MAX_PATTERN} characters")
    parser = _Parser(pattern)
    node = parser.choice(0)
    if parser.at < len(pattern):
        raise parser.fail("a parenthesis closes that was not opened")
    return node


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def fail(self, reason: str) -> InvalidPattern:
        return InvalidPattern(self.at + 1, reason)

    @property
    def next(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        char = self.next
        self.at += 1
        return char

    def choice(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise self.fail(f"groups are nested more than {_MAX_DEPTH} deep")
        options = [self._sequence(depth)]
        while self.next == "|":
            self.at += 1
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.next not in ("", "|", ")"):
            parts.append(self._repeated(self._atom(depth)))
        return Sequence(tuple(parts))

    def _repeated(self, atom: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return atom
        if isinstance(atom, Assertion):
            raise self.fail("a condition on a place cannot be repeated")
        if self.next == "?":
            # Lazy or greedy: whether something is found is the same.
            self.at += 1
        if self.next in ("*", "+", "?", "{") and self.next:
            raise self.fail("there is nothing to repeat; put what is repeated into a group")
        return Repeat(atom, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self.next in simple:
            return simple[self.take()]
        if self.next != "{":
            return None
        end = self.pattern.find("}", self.at)
        first, comma, last = self.pattern[self.at + 1 : end].partition(",") if end > 0 else ("?", "", "")
        if not all(part.isascii() and part.isdigit() for part in (first, last) if part) or not (first or last):
            raise self.fail("expected {m}, {m,}, {,n} or {m,n}; a brace as such is written \\{")
        least = int(first or 0)
        most = (int(last) if last else None) if comma else least
        if max(least, most or 0) > _MAX_REPEAT or (most is not None and most < least):
            raise self.fail(f"counts go up to {_MAX_REPEAT}, the smaller one first")
        self.at = end + 1
        return least, most

    def _atom(self, depth: int) -> Node:
        char = self.next
        if char == "(":
            return self._group(depth)
        if char == "[":
            return self._set()
        if char in "*+?{":
            raise self.fail(f"there is nothing for {char!r} to repeat; as such it is written \\{char}")
        self.at += 1
        if char == ".":
            return CharSet((("\n", "\n"),), negated=True)
        if char in "^$":
            return Assertion("start" if char == "^" else "end")
        if char == "\\":
            if self.next in _ANCHORS and self.next:
                return Assertion(_ANCHORS[self.take()])
            return self._escape()
        return CharSet(((char, char),))

    def _group(self, depth: int) -> Node:
        self.at += 1
        if self.next == "?":
            if self.pattern[self.at : self.at + 2] != "?:":
                raise self.fail("of groups with (? only (?:…) is there; no flags, no looks around, no names")
            self.at += 2
        inner = self.choice(depth + 1)
        if self.next != ")":
            raise self.fail("a parenthesis is not closed")
        self.at += 1
        return inner

    def _escape(self) -> CharSet:
        """What a backslash, which was read already, makes of what follows."""
        char = self.next
        if char and char in "dDwWsS":
            self.at += 1
            return CharSet(classes=char)
        literal = self._escaped_char()
        return CharSet(((literal, literal),))

    def _escaped_char(self) -> str:
        char = self.next
        if not char:
            raise self.fail("a backslash stands at the end")
        if char in _HEX_DIGITS:
            digits = self.pattern[self.at + 1 : self.at + 1 + _HEX_DIGITS[char]]
            if len(digits) < _HEX_DIGITS[char] or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise self.fail(f"\\{char} needs {_HEX_DIGITS[char]} hexadecimal digits")
            self.at += 1 + len(digits)
            return chr(int(digits, 16))
        if char in _CONTROLS:
            self.at += 1
            return _CONTROLS[char]
        if char.isascii() and char.isalnum():
            raise self.fail(f"\\{char} has no meaning here; references back are not there")
        return self.take()

    def _set(self) -> CharSet:
        self.at += 1
        negated = self.next == "^"
        self.at += negated
        ranges: list[tuple[str, str]] = []
        classes = ""
        is_first = True
        while is_first or self.next != "]":
            is_first = False
            first = self._set_member()
            if first.classes:
                classes += first.classes
                continue
            low = high = first.ranges[0][0]
            if self.next == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 1
                last = self._set_member()
                high = last.ranges[0][0] if last.ranges else ""
                if high < low:
                    raise self.fail("a range ends before it begins")
            ranges.append((low, high))
        self.at += 1
        return CharSet(tuple(ranges), classes, negated)

    def _set_member(self) -> CharSet:
        if not self.next:
            raise self.fail("a bracket is not closed")
        char = self.take()
        return self._escape() if char == "\\" else CharSet(((char, char),))
