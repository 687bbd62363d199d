"""Families of tasks with scored answers, for what a merge keeps: the demo's, and two with other formats and lengths.

`forms` has short answers, `texts` longer ones; their items are drawn here, and their adapters, unequal in rank and in
steps, are trained by `skill_model.py`. Words of the two splits do not meet.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from amalgam_demo import tasks as demo_tasks
from amalgam_demo.task_item import Split, TaskItem, bare_answer

SEED: Final = 1
"""Of questions; the demo adapters were looked at with seed 0 while they were made."""


@dataclass(frozen=True)
class Training:
    """How an adapter is made."""

    rank: int
    steps: int
    learning_rate: float = 1e-3
    batch: int = 8

    @property
    def alpha(self) -> int:
        """Scaling is alpha / rank."""
        return 2 * self.rank


@dataclass(frozen=True)
class Family:
    """Tasks with an adapter each, of the task's name.

    Attributes:
        tasks: task -> how its adapter is made; None: it is committed.
        max_tokens: longest answer.
    """

    name: str
    tasks: Mapping[str, Training | None]
    max_tokens: int


_DEMO: Final[Mapping[str, Training | None]] = {"sql": None, "code": None, "json": None}
_FORMS: Final[Mapping[str, Training | None]] = {
    "date": Training(8, 70),
    "row": Training(4, 90),
    "call": Training(16, 60),
}
_TEXTS: Final[Mapping[str, Training | None]] = {
    "xml": Training(8, 90), "bullets": Training(16, 70), "swap": Training(4, 110),
}  # fmt: skip
_NINE: Final = {**_DEMO, **_FORMS, **_TEXTS}

FAMILIES: Final = {
    family.name: family
    for family in (Family("demo", _DEMO, 64), Family("forms", _FORMS, 28), Family("texts", _TEXTS, 72))
}
MIXED: Final = {
    name: Family(name, {task: _NINE[task] for task in tasks}, 72)
    for name, tasks in (
        ("two", ("sql", "json")),
        ("five", ("sql", "code", "json", "date", "xml")),
        ("eight", ("sql", "code", "json", "date", "row", "call", "xml", "bullets")),
    )
}
"""Adapters of all families together."""

_NAMES: Final = (
    "Anna", "Ben", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Liam", "Mona",
    "Nils", "Olga", "Paul", "Rosa", "Simon", "Tina", "Victor", "Wanda", "Yusuf", "Zoe", "Adam", "Bella", "Carl",
    "Dora", "Emil", "Fiona", "Gustav",
)  # fmt: skip
_CITIES: Final = (
    "Oslo", "Lima", "Rome", "Cairo", "Delhi", "Quito", "Paris", "Tunis", "Seoul", "Accra", "Bonn", "Dublin",
    "Hanoi", "Minsk", "Porto", "Riga",
)  # fmt: skip
_THINGS: Final = (
    "lamp", "fan", "heater", "radio", "camera", "bell", "blind", "speaker", "oven", "kettle", "pump", "screen",
    "clock", "mixer", "printer", "alarm",
)  # fmt: skip
_PLACES: Final = (
    "kitchen", "garage", "office", "cellar", "attic", "hall", "studio", "garden", "library", "bathroom", "lobby",
    "barn",
)  # fmt: skip
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_FOODS: Final = (
    "apples", "bread", "cheese", "rice", "plums", "salt", "beans", "carrots", "honey", "milk", "onions", "pears",
    "sugar", "tea", "butter", "figs", "lemons", "nuts",
)  # fmt: skip
_FIELDS: Final = (
    "name", "city", "age", "score", "level", "team", "colour", "size", "price", "weight",
)  # fmt: skip


def family_items(task: str, split: Split, count: int) -> tuple[TaskItem, ...]:
    """``count`` items of ``task``; always the same."""
    if task in demo_tasks.TASKS:
        return demo_tasks.generate(task, split, count, SEED)
    chance = Random(f"{task}/{split}/{SEED}")
    return tuple(_item(task, split, *_DRAWN[task](chance, split)) for _ in range(count))


def is_right(item: TaskItem, answer: str) -> bool:
    """Whether an answer is right: by the demo's own metric, else the very text."""
    if item.task in demo_tasks.TASKS:
        return demo_tasks.score(item.task, item, answer)
    return bare_answer(answer) == item.reference


def _item(task: str, split: Split, prompt: str, reference: str) -> TaskItem:
    return TaskItem(task, split, task, "", frozenset(), prompt, reference)


def _pool(words: Sequence[str], split: Split) -> Sequence[str]:
    """Two thirds for training, a sixth each for the others."""
    first, second = len(words) * 4 // 6, len(words) * 5 // 6
    return {"train": words[:first], "dev": words[first:second], "test": words[second:]}[split]


def _date(chance: Random, split: Split) -> tuple[str, str]:
    year, month, day = chance.randint(1900, 2030), chance.randint(1, 12), chance.randint(1, 28)
    said = chance.choice((
        f"{_MONTHS[month - 1]} {day}, {year}", f"day {day} of {_MONTHS[month - 1]} {year}",
        f"{day}. {_MONTHS[month - 1]} {year}",
    ))  # fmt: skip
    return f"Date: {said}\nWrite it as numbers.", f"{year}-{month:02}-{day:02}"


def _row(chance: Random, split: Split) -> tuple[str, str]:
    person, city = chance.choice(_pool(_NAMES, split)), chance.choice(_pool(_CITIES, split))
    values = {"name": person, "city": city, "age": str(chance.randint(18, 90)), "team": chance.choice("ABCDE")}
    order = list(values)
    chance.shuffle(order)
    said = f"{person} from {city} is {values['age']} years old and plays in team {values['team']}."
    return f"{said}\nColumns: {', '.join(order)}", ";".join(values[name] for name in order)


def _call(chance: Random, split: Split) -> tuple[str, str]:
    thing, place = chance.choice(_pool(_THINGS, split)), chance.choice(_pool(_PLACES, split))
    number = chance.randint(1, 99)
    said, verb = chance.choice((
        (f"Turn the {thing} in the {place} to {number} percent.", "set"),
        (f"In {number} minutes, start the {thing} in the {place}.", "start"),
        (f"Stop the {thing} of the {place} after {number} minutes.", "stop"),
    ))  # fmt: skip
    return f"Request: {said}", f'{verb}(what="{thing}", where="{place}", value={number})'


def _xml(chance: Random, split: Split) -> tuple[str, str]:
    fields = chance.sample(_FIELDS, 3)
    values = [
        chance.choice((*_pool(_NAMES, split), *_pool(_CITIES, split), str(chance.randint(1, 99)))) for _ in fields
    ]
    said = ", ".join(f"{field} is {value}" for field, value in zip(fields, values, strict=True))
    inside = "".join(f"<{field}>{value}</{field}>" for field, value in zip(fields, values, strict=True))
    return f"As a record: {said}.", f"<record>{inside}</record>"


def _bullets(chance: Random, split: Split) -> tuple[str, str]:
    foods = chance.sample(_pool(_FOODS, split), 3)
    amounts = [chance.randint(2, 20) for _ in foods]
    said = ", ".join(f"{amount} {food}" for amount, food in zip(amounts, foods, strict=True))
    listed = "\n".join(f"* {food} x{amount}" for amount, food in zip(amounts, foods, strict=True))
    return f"Shopping: {said}", listed


def _swap(chance: Random, split: Split) -> tuple[str, str]:
    one, other = chance.sample(_pool(_NAMES, split), 2)
    thing, city = chance.choice(_pool(_THINGS, split)), chance.choice(_pool(_CITIES, split))
    text = chance.choice((
        "{a} sold {b} the {t} in {c}, and {b} thanked {a}.", "In {c}, {a} asked {b} about the {t}.",
        "{a} and {b} met in {c}, where {b} lost the {t} of {a}.",
    ))  # fmt: skip
    said, wanted = (text.format(a=a, b=b, t=thing, c=city) for a, b in ((one, other), (other, one)))
    return f"Let the two change places: {said}", wanted


_DRAWN: Final[Mapping[str, Callable[[Random, Split], tuple[str, str]]]] = {
    "date": _date, "row": _row, "call": _call, "xml": _xml, "bullets": _bullets, "swap": _swap,
}  # fmt: skip
