"""The expression grammar: LoRA arithmetic and method calls, as written in the ``model`` field.

    expression := sum | call
    sum        := ["-"] term { ("+" | "-") term }
    call       := method "(" term { "," term } [ ";" option { "," option } ] ")"
    term       := ["-"] [ number "*" ] adapter
    option     := name "=" value

A minus between terms needs blanks around it, since adapter names may contain one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from amalgam.domain.adapter import NAME_PATTERN
from amalgam.domain.recipe import EnergyRank, Output, Recipe, RecipeInput
from amalgam.errors.merging import InvalidExpression
from amalgam.errors.type_words import told

MAX_LENGTH: Final = 4096
"""The longest expression that is read has so many characters."""

MAX_WEIGHT: Final = 1e6
"""A weight in an expression has at most this magnitude."""

SUM_METHOD: Final = "task_arithmetic"
"""A plain sum means this: Σ wᵢΔᵢ."""

_PATH: Final = rf"(?:\.{{1,2}}|~|{NAME_PATTERN})?/[^\s,;()*+\"]*"
_TOKEN: Final = re.compile(
    rf"(?P<blank>\s+)|(?P<path>{_PATH}|\.{{1,2}}(?=[\s,;()*+]|$))"
    rf"|(?P<word>{NAME_PATTERN}(?:@[1-9][0-9]{{0,8}})?|\.[0-9][\w.-]*)|(?P<quoted>\"[^\"]*\")|(?P<sign>[-+*(),;=])"
)
_NUMBER: Final = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?")
_RESERVED_OPTIONS: Final = frozenset(
    {"space", "seed", "rank", "energy", "min_energy", "dtype", "norm_balance", "calibrate",
     "orthogonalize_against", "orthogonalize_rows",
     "allow_base_mismatch"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParsedExpression:
    """What an expression says, and where; columns count from 1."""

    recipe: Recipe
    """Its inputs are not pinned yet."""
    adapters: Mapping[str, int]
    """It maps each adapter to the column of its first mention."""
    parts: Mapping[str, int]
    """It maps each option's name to its column, and ``method`` to the method's."""


def is_expression(text: str) -> bool:
    """Whether ``text`` can only be an expression, not a name: it holds a character that names never do."""
    return any(sign in text for sign in "+*(),;") or " " in text.strip() or text.lstrip().startswith("-")


def parse_expression(text: str, *, allow_paths: bool = False) -> Recipe:
    """Read an expression into a recipe whose inputs are not pinned yet.

    Args:
        text: The expression, at most ``MAX_LENGTH`` characters.
        allow_paths: Whether folders (``./a``, ``/srv/a``, ``"any path"``) may stand for adapters.

    Raises:
        InvalidExpression: with the column at fault.
        NoInputs, DuplicateInput, TooManyInputs: as for a recipe.
    """
    return locate_expression(text, allow_paths=allow_paths).recipe


def locate_expression(text: str, *, allow_paths: bool = False, max_length: int = MAX_LENGTH) -> ParsedExpression:
    """The same, with the columns of what was read, for errors that are found later.

    Args:
        text: The expression.
        allow_paths: As in `parse_expression`.
        max_length: Longest text that is looked at, characters; at most ``MAX_LENGTH``.

    Raises:
        InvalidExpression, NoInputs, DuplicateInput, TooManyInputs: as `parse_expression`.
    """
    limit = min(max_length, MAX_LENGTH)
    if len(text) > limit:
        raise InvalidExpression(text, limit + 1, f"it is longer than {limit} characters")
    parser = _Parser(text, allow_paths)
    recipe = parser.parse()
    return ParsedExpression(recipe, dict(parser.adapters_at), parser.parts_at())


def print_expression(recipe: Recipe, *, always_seed: bool = False, always_dtype: bool = False) -> str | None:
    """The expression that reads back as ``recipe``; None where a gradient or a filter needs the JSON form.

    Args:
        recipe: Pinned or not.
        always_seed: Whether a seed of 0, which is the default, is written too.
        always_dtype: The same of the default type.
    """
    terms: list[tuple[float, str]] = []
    for entry in recipe.inputs:
        if isinstance(entry.weight, tuple):
            return None
        terms.append((entry.weight, _print_name(entry.adapter)))
    options = _print_options(recipe, always_seed=always_seed, always_dtype=always_dtype)
    if recipe.method == SUM_METHOD and not options:
        first, *rest = terms
        signs = [f" {'-' if weight < 0 else '+'} {_print_term(abs(weight), name)}" for weight, name in rest]
        return _print_term(*first) + "".join(signs)
    inside = ", ".join(_print_term(weight, name) for weight, name in terms)
    return f"{recipe.method}({inside}{'; ' + ', '.join(options) if options else ''})"


def _print_term(weight: float, name: str) -> str:
    if weight == 1:
        return name
    return f"-{name}" if weight == -1 else f"{_print_number(weight)}*{name}"


def _print_number(value: float) -> str:
    return repr(int(value)) if value.is_integer() and abs(value) < 1 << 53 else repr(value).replace("e+", "e")


def _print_name(name: str) -> str:
    return name if re.fullmatch(rf"{NAME_PATTERN}(@\d+)?|{_PATH}", name) else f'"{name}"'


def _print_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _print_number(float(value)) if isinstance(value, float) else str(value)


def _print_options(recipe: Recipe, *, always_seed: bool, always_dtype: bool) -> list[str]:
    shown: dict[str, Any] = dict(recipe.parameters)
    seed = recipe.seed if recipe.seed or always_seed else None
    shown |= {"space": recipe.space, "seed": seed, "calibrate": recipe.calibrate}
    shown |= {"norm_balance": recipe.norm_balance or None, "allow_base_mismatch": recipe.allow_base_mismatch or None}
    if recipe.orthogonalize_against:
        shown["orthogonalize_against"] = "+".join(_print_name(name) for name in recipe.orthogonalize_against)
    shown["orthogonalize_rows"] = recipe.orthogonalize_rows or None
    output, plain = recipe.output, Output()
    if isinstance(output.rank, EnergyRank):
        shown["energy"] = output.rank.energy
    elif output.rank != plain.rank:
        shown["rank"] = output.rank
    shown["dtype"] = output.dtype if always_dtype or output.dtype != plain.dtype else None
    shown["min_energy"] = output.min_energy
    return [f"{name}={_print_value(value)}" for name, value in shown.items() if value is not None]


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    blank_before: bool


class _Parser:
    """Recursive descent over the tokens; ``at`` is the next one."""

    def __init__(self, text: str, allow_paths: bool) -> None:
        self.text = text
        self.allow_paths = allow_paths
        self.tokens = self._tokenize()
        self.at = 0
        self.options_at: dict[str, _Token] = {}
        self.adapters_at: dict[str, int] = {}
        self.method_at = 0

    def parts_at(self) -> dict[str, int]:
        return {name: token.start + 1 for name, token in self.options_at.items()} | {"method": self.method_at + 1}

    def fail(self, token: _Token, reason: str) -> InvalidExpression:
        return InvalidExpression(self.text, token.start + 1, reason)

    def _tokenize(self) -> list[_Token]:
        tokens, position, blank = [], 0, False
        while position < len(self.text):
            found = _TOKEN.match(self.text, position)
            if found is None:
                raise InvalidExpression(self.text, position + 1, f"{self.text[position]!r} has no meaning here")
            kind = str(found.lastgroup)
            if kind in ("path", "quoted") and not self.allow_paths:
                raise InvalidExpression(self.text, position + 1, "adapters are given by name here, not by path")
            if kind != "blank":
                tokens.append(_Token(kind, found[0], position, blank))
            blank = kind == "blank"
            position = found.end()
        tokens.append(_Token("end", "", len(self.text), blank))
        return tokens

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def take(self, text: str) -> bool:
        if self.token.kind == "sign" and self.token.text == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str, reason: str) -> None:
        if not self.take(text):
            raise self.fail(self.token, reason)

    def parse(self) -> Recipe:
        is_call = self.token.kind == "word" and self.tokens[self.at + 1].text == "("
        recipe = self._call() if is_call else Recipe(method=SUM_METHOD, inputs=tuple(self._sum()))
        if self.token.kind != "end":
            raise self.fail(self.token, "the expression should end here")
        return recipe

    def _sum(self) -> list[RecipeInput]:
        terms = [self._term()]
        while self.token.kind != "end":
            sign = self.token
            if not (self.take("+") or self.take("-")):
                raise self.fail(sign, "expected ' + ' or ' - ' between two terms")
            if sign.text == "-" and not (sign.blank_before and self.token.blank_before):
                raise self.fail(sign, "a minus between terms needs a blank on both sides")
            terms.append(self._term(-1.0 if sign.text == "-" else 1.0, signed=False))
        return terms

    def _term(self, sign: float = 1.0, *, signed: bool = True) -> RecipeInput:
        if signed and self.take("-"):
            sign = -sign
        weight = 1.0
        if self.tokens[min(self.at + 1, len(self.tokens) - 1)].text == "*":
            weight = self._number()
            self.at += 1
        return RecipeInput(adapter=self._adapter(), weight=sign * weight)

    def _number(self) -> float:
        token = self.token
        if token.kind != "word" or not _NUMBER.fullmatch(token.text):
            raise self.fail(token, "a weight before '*' is a number such as 0.5")
        self.at += 1
        if abs(value := float(token.text)) > MAX_WEIGHT:
            raise self.fail(token, f"a weight lies between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
        return value

    def _adapter(self) -> str:
        token = self.token
        if token.kind not in ("word", "path", "quoted") or (token.kind == "word" and token.text.startswith(".")):
            raise self.fail(token, "expected the name of an adapter")
        if self.tokens[self.at + 1].text == "(":
            raise self.fail(token, "methods do not nest; publish the inner merge and use its name")
        self.at += 1
        name = token.text.strip('"') if token.kind == "quoted" else token.text
        if not name:
            raise self.fail(token, "expected the name of an adapter")
        self.adapters_at.setdefault(name, token.start + 1)
        return name

    def _call(self) -> Recipe:
        method = self.token
        self.method_at = method.start
        self.at += 1
        self.expect("(", "expected '('")
        if "@" in method.text:
            raise self.fail(method, "a method has no version")
        terms = [self._term()]
        while self.take(","):
            terms.append(self._term())
        options: dict[str, Any] = {}
        if self.take(";"):
            self._option(options)
            while self.take(","):
                self._option(options)
        self.expect(")", "expected ',', ';' or ')'")
        try:
            return _recipe(method.text, tuple(terms), options)
        except ValidationError as error:
            found = error.errors()
            # Of a field with several admissible types, that of a number or a word says most.
            place = next((one for one in found if one["type"] not in ("model_type", "literal_error")), found[-1])
            names = [str(part) for part in place["loc"] if str(part) in self.options_at] or ["energy"]
            token = self.options_at.get(names[-1], method)
            raise self.fail(token, f"option {names[-1]}: {told(place)}") from error

    def _option(self, options: dict[str, Any]) -> None:
        name = self.token
        if name.kind != "word":
            raise self.fail(name, "expected an option such as density=0.3")
        if name.text in options:
            raise self.fail(name, f"option {name.text!r} is given twice")
        self.at += 1
        self.options_at[name.text] = name
        self.expect("=", "expected '=' after the name of an option")
        options[name.text] = self._references() if name.text == "orthogonalize_against" else self._value()

    def _references(self) -> tuple[str, ...]:
        names = [self._adapter()]
        while self.take("+"):
            names.append(self._adapter())
        return tuple(names)

    def _value(self) -> bool | float | str:
        negative = self.take("-")
        token = self.token
        if token.kind == "word" and _NUMBER.fullmatch(token.text):
            self.at += 1
            whole = token.text.isdigit()
            value = int(token.text) if whole else float(token.text)
            return -value if negative else value
        if negative or token.kind != "word":
            raise self.fail(token, "expected a value: a number, a word, true or false")
        self.at += 1
        return {"true": True, "false": False}.get(token.text, token.text)


def _recipe(method: str, inputs: tuple[RecipeInput, ...], options: dict[str, Any]) -> Recipe:
    """Sort the options into the recipe's own fields, its output's, and the method's parameters."""
    fields: dict[str, Any] = {name: options[name] for name in options if name in _RESERVED_OPTIONS}
    parameters = {name: value for name, value in options.items() if name not in _RESERVED_OPTIONS}
    output = {name: fields.pop(name) for name in ("rank", "dtype", "min_energy") if name in fields}
    if "energy" in fields:
        output["rank"] = {"energy": fields.pop("energy")}
    return Recipe.model_validate(
        {"method": method, "inputs": inputs, "parameters": parameters, "output": output, **fields}
    )
