"""Task ``json``: a sentence and a shape become JSON; scored by value.

An answer is right when it parses and equals the reference: the same keys, types, numbers and order of lists; the
order of keys and the white space are free. The key names of the shapes come from pools of the split, so training
teaches to read a shape, not to know one by heart.
"""

import json
import re
from random import Random
from typing import Final

from amalgam_demo.json_equality import parse_json, same_json
from amalgam_demo.json_slots import Draw, Slot
from amalgam_demo.tables import JsonTemplate, Shape, json_templates
from amalgam_demo.task_item import Split, TaskItem, bare_answer

_CHOICE: Final = re.compile(r"<(\w+):([^|<>]*)\|([^|<>]*)>")
_SLOT: Final = re.compile(r"{(\w+)}")


def generate(split: Split, count: int, rng: Random) -> tuple[TaskItem, ...]:
    """``count`` items of ``split``; the templates take turns, everything else is drawn from ``rng``."""
    order = list(json_templates())
    rng.shuffle(order)
    return tuple(_item(order[index % len(order)], split, rng) for index in range(count))


def score(item: TaskItem, answer: str) -> bool:
    """Whether ``answer`` is JSON and nothing else, and equals the reference."""
    try:
        found = parse_json(bare_answer(answer))
    except (ValueError, RecursionError):
        return False
    return same_json(found, json.loads(item.reference))


def _item(template: JsonTemplate, split: Split, rng: Random) -> TaskItem:
    draw = Draw(split, rng)
    wording = rng.choice(template.wordings[split])
    text, chosen = _choose(wording, rng)
    slots: dict[str, Slot] = {}
    value, kinds = _build(template.shape, draw, chosen, slots)
    sentence = _SLOT.sub(lambda found: slots[found[1]].said, text)
    sentence = sentence[0].upper() + sentence[1:]
    return TaskItem(
        task="json",
        split=split,
        template=template.name,
        wording=wording,
        entities=frozenset(draw.entities),
        prompt=f"Text: {sentence}\nShape: {_shown(kinds)}\nAnswer with the JSON only.",
        reference=json.dumps(value),
    )


def _choose(wording: str, rng: Random) -> tuple[str, dict[str, bool | None]]:
    """The wording with every choice made, and what was chosen: a boolean, or None for a value that stays away."""
    chosen: dict[str, bool | None] = {}

    def pick(found: re.Match[str]) -> str:
        name, yes, no = found.groups()
        taken = rng.random() < 0.5
        nullable = f"{{{name}}}" in yes
        chosen[name] = taken or (None if nullable else False)
        return yes if taken else no

    return _CHOICE.sub(pick, wording), chosen


def _build(
    shape: Shape, draw: Draw, chosen: dict[str, bool | None], slots: dict[str, Slot]
) -> tuple[dict[str, object], dict[str, object]]:
    """The JSON of ``shape`` and the same with types for values; every slot drawn is added to ``slots``."""
    value: dict[str, object] = {}
    kinds: dict[str, object] = {}
    for concept, part in shape.items():
        key = draw.key(concept)
        if isinstance(part, str):
            slot = _drawn(part, draw, chosen)
            slots[part] = slot
            value[key], kinds[key] = slot.value, slot.kind
        elif isinstance(part, list):
            slots[concept] = slot = draw.lines([draw.key(inner) for inner in part[0]])
            value[key], kinds[key] = slot.value, slot.kind
        else:
            value[key], kinds[key] = _build(part, draw, chosen, slots)
    return value, kinds


def _drawn(name: str, draw: Draw, chosen: dict[str, bool | None]) -> Slot:
    """The value of slot ``name``, as ``chosen`` decided where the wording has a choice."""
    if name == "flag":
        return Slot("", chosen["flag"], "boolean")
    slot = draw.slot(name)
    if name not in chosen:
        return slot
    return slot._replace(value=slot.value if chosen[name] else None, kind=f"{slot.kind} or null")


def _shown(kinds: object) -> str:
    """A shape as the prompt shows it: JSON with the names of types instead of values."""
    if isinstance(kinds, dict):
        return "{" + ", ".join(f'"{key}": {_shown(kind)}' for key, kind in kinds.items()) + "}"
    if isinstance(kinds, list):
        return f"[{_shown(kinds[0])}]"
    return str(kinds)
