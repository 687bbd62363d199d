"""Pattern tables mean what they mean to PEFT, and cannot run away."""

import time

import pytest
from peft.utils.other import get_pattern_key

from amalgam.domain.name_patterns import NamePatterns
from amalgam.errors.internal import PatternRefused

MODULES = [
    f"model.layers.{n}.{m}" for n in (0, 1, 10, 11) for m in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
]

TABLES = [
    {},
    {"q_proj": 1},
    {"proj": 1},
    {"model.layers.1.self_attn.q_proj": 1},
    {"layers.1.self_attn.q_proj": 1, "q_proj": 2},
    {"q_proj": 2, "layers.1.self_attn.q_proj": 1},
    {"self_attn.q_proj": 1, "k_proj": 2, "up_proj": 3},
    {r"model.layers.\d+.mlp.up_proj": 1},
    {r"layers\.1\d?\.self_attn\..*": 1, "q_proj": 2},
    {"q_proj": 2, r"layers\.1\d?\.self_attn\..*": 1},
    {"^model.layers.0.self_attn.k_proj": 1, "^self_attn.q_proj": 2},
    {"(q|k)_proj": 1},
    {"self_attn.(?:q_proj|k_proj)": 1, ".*up_proj": 2},
    {r"layers\.[01]\.mlp\.\w+": 1},
    {"q_proj|k_proj": 1},
]


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_the_same_key_wins_as_in_peft(table: dict[str, int]) -> None:
    ours = NamePatterns[int](table)
    for module in MODULES:
        assert ours.get(module, 0) == table.get(get_pattern_key(table.keys(), module), 0), module


def test_values_are_all_of_them() -> None:
    assert sorted(NamePatterns[int]({"a": 3, "b.*": 1, "c": 2}).values()) == [1, 2, 3]


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+b",
        "(a|a)*b",
        "(a*)*",
        "(.*)(.*)*",
        ".*.*.*x",
        r"(a)\1",
        "a{2,}",
        "(?=a)",
        "(?P<x>a)",
        "a**",
        "",
        "a*" + "a" * 512,
        "a?" * 30 + "a" * 30,
        "(a|a)" * 30 + "!",
        "a|" * 20,
        "(a",
        "[z-a]",
    ],
)
def test_expressions_that_could_run_away_are_refused(key: str) -> None:
    with pytest.raises(PatternRefused):
        NamePatterns[int]({key: 1})


def test_a_hostile_table_is_judged_and_used_quickly() -> None:
    """Keys that would take exponential time in a naive check or match, and as many expressions as are let in."""
    began = time.monotonic()
    for key in ("a" * 512 + "!", "(" * 511 + "!", "[a-" * 170, r"\d" * 255 + "!"):
        with pytest.raises(PatternRefused):
            NamePatterns[int]({key: 1})
    table = NamePatterns[int]({f".*.*x?{n}x": n for n in range(16)})
    for _ in range(20):
        table.get("model." + ".a" * 30, 0)
    assert time.monotonic() - began < 5


def test_too_many_expressions_are_refused_but_not_too_many_names() -> None:
    with pytest.raises(PatternRefused):
        NamePatterns[int]({f"a.*{n}": n for n in range(17)})
    assert (
        NamePatterns[int]({f"model.layers.{n}.q_proj": n for n in range(5000)}).get("model.layers.4321.q_proj", 0)
        == 4321
    )
