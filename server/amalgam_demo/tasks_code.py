"""Task ``code``: a sentence becomes a Python function; scored by running it on cases.

An answer is right when its function returns what the reference returns, for every case. Both run in a sandbox of
their own; the process that runs the answer never sees the reference or its results.
"""

import json
from random import Random
from typing import Final

from amalgam_demo.domains import draw_domain
from amalgam_demo.json_equality import same_json
from amalgam_demo.sandbox import run_function
from amalgam_demo.tables import CodeTemplate, Domain, code_templates
from amalgam_demo.task_item import Split, TaskItem, bare_answer

CASES: Final = 4
"""An item has so many drawn cases; an empty argument is added where it is fair."""
HANDLES: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("get", "make", "find", "compute", "build", "select", "work_out", "handle", "list", "check"),
    "dev": ("derive", "solve"),
    "test": ("produce", "obtain", "prepare", "evaluate"),
}
"""They are first words of function names; drawn at random, so that a name tells nothing of the function."""
_LETTERS: Final = "abcdeiostu"
_SYLLABLES: Final = ("ba", "de", "to", "si", "cu", "ra", "net", "lim", "os", "ab", "it", "u")


def generate(split: Split, count: int, rng: Random) -> tuple[TaskItem, ...]:
    """``count`` items of ``split``; the templates take turns, everything else is drawn from ``rng``."""
    order = list(code_templates())
    rng.shuffle(order)
    return tuple(_item(order[index % len(order)], split, rng) for index in range(count))


def score(item: TaskItem, answer: str) -> bool:
    """Whether the function of ``answer`` returns what the reference returns, on every case of ``item``."""
    source = bare_answer(answer)
    function = _function_name(item.reference)
    if f"def {function}(" not in source:
        return False
    found = run_function(source, function, item.evidence)
    if any(outcome.failed for outcome in found):
        return False
    expected = run_function(item.reference, function, item.evidence)
    return all(
        not want.failed and same_json(have.value, want.value) for have, want in zip(found, expected, strict=True)
    )


def _function_name(reference: str) -> str:
    return reference.removeprefix("def ").partition("(")[0]


def _item(template: CodeTemplate, split: Split, rng: Random) -> TaskItem:
    domain = draw_domain(split, rng)
    wording = rng.choice(template.wordings[split])
    handle = rng.choice(HANDLES[split])
    number, other = rng.sample((domain.first, domain.second), 2)
    parameter = {"numbers": other, "words": domain.table, "text": domain.category, "records": domain.table}
    low = rng.randint(2, 9)
    slots = {
        "p": parameter[template.kind], "k": low, "j": low + rng.randint(1, 9), "q": rng.choice(_LETTERS),
        "l": domain.label, "c": domain.category, "n": number, "v": rng.choice(domain.values),
    }  # fmt: skip
    function = f"{handle}_{domain.child}"
    signature = f"{function}({slots['p']})"
    lines = template.body.format(**slots).split("\n")
    body = lines if len(lines) > 1 else [f"return {lines[0]}"]
    return TaskItem(
        task="code",
        split=split,
        template=template.name,
        wording=wording,
        entities=domain.entities | {handle},
        prompt=f"Write a Python function {signature} that {wording.format(**slots)}.\nAnswer with the code only.",
        reference="\n".join([f"def {signature}:", *(f"    {line}" for line in body)]),
        evidence=_cases(template, domain, low, rng),
    )


def _cases(template: CodeTemplate, domain: Domain, low: int, rng: Random) -> tuple[str, ...]:
    """One JSON list of arguments per case."""
    drawn = [_argument(template, domain, low, rng) for _ in range(CASES)]
    empty: list[object] = [""] if template.kind == "text" else [[]]
    return tuple(json.dumps([argument]) for argument in drawn + (empty if template.empty else []))


def _argument(template: CodeTemplate, domain: Domain, low: int, rng: Random) -> object:
    """An argument that tells right from nearly right: boundaries, negatives, repetitions; no ties in orders."""
    if template.kind == "numbers":
        numbers = [low, low + 1, low - 1, 0, -low, low * rng.randint(2, 5), *rng.sample(range(-60, 60), 6)]
        rng.shuffle(numbers)
        return numbers
    if template.kind == "records":
        numbers = rng.sample(range(1, 500), 12)
        return [_record(domain, numbers[2 * index], numbers[2 * index + 1], rng) for index in range(6)]
    words = [_word(length, rng) for length in rng.sample(range(1, 7), 5)]
    if template.kind == "words":
        return words if template.name == "longest" else [*words, *rng.sample(words, 2)]
    half = _word(3, rng)
    palindrome = template.name == "palindrome" and rng.random() < 0.5
    return half + half[::-1] if palindrome else " ".join([*words, half])


def _record(domain: Domain, first: int, second: int, rng: Random) -> dict[str, object]:
    return {
        domain.label: _word(3, rng),
        domain.category: rng.choice(domain.values),
        domain.first: first,
        domain.second: second,
    }


def _word(syllables: int, rng: Random) -> str:
    return rng.choice(_LETTERS) + "".join(rng.choice(_SYLLABLES) for _ in range(syllables))
