"""Functions on cases: right ones pass, nearly right ones fail, and no code gets out of its process."""

import json
import time
from typing import Any

import pytest

from amalgam_demo.sandbox import MAX_SOURCE_CHARS, run_function
from amalgam_demo.tables import code_templates
from amalgam_demo.task_item import TaskItem
from amalgam_demo.tasks import generate
from amalgam_demo.tasks_code import score

ITEM = TaskItem(
    task="code",
    split="test",
    template="above",
    wording="any",
    entities=frozenset(),
    prompt="any",
    reference="def produce(depths):\n    return [x for x in depths if x > 3]",
    evidence=("[[2, 3, 4, 9]]", "[[]]"),
)


def run(source: str, *, wall_s: float = 10.0) -> Any:
    return run_function(source, "f", ["[1]", "[2]"], wall_s=wall_s)


def works(source: str) -> bool:
    return not any(outcome.failed for outcome in run(source))


def test_every_template_has_a_reference_that_runs_on_its_cases() -> None:
    for item in generate("code", "dev", len(code_templates()), seed=1):
        name = item.reference.removeprefix("def ").partition("(")[0]
        outcomes = run_function(item.reference, name, item.evidence)
        assert not any(outcome.failed for outcome in outcomes), item.reference
        assert len({repr(outcome.value) for outcome in outcomes}) > 1, f"the cases of {item.template} tell nothing"


@pytest.mark.parametrize(
    "answer",
    [
        ITEM.reference,
        f"```python\n{ITEM.reference}\n```",
        "def produce(d):\n    out = []\n    for n in d:\n        if n > 3:\n            out += [n]\n    return out",
        "import itertools\ndef produce(d):\n    return list(itertools.filterfalse(lambda n: n <= 3, d))",
        "print('hello')\n" + ITEM.reference,
    ],
)
def test_what_computes_the_same_is_right(answer: Any) -> None:
    assert score(ITEM, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "def produce(depths):\n    return [x for x in depths if x >= 3]",
        "def produce(depths):\n    return [4, 9]",
        "def produce(depths):\n    return str([x for x in depths if x > 3])",
        "def produce(depths):\n    print([x for x in depths if x > 3])",
        "def produces(depths):\n    return [x for x in depths if x > 3]",
        "def produce(depths:\n    return 1",
        "Here is the code:\n" + ITEM.reference,
        "",
    ],
)
def test_what_is_nearly_right_is_wrong(answer: Any) -> None:
    assert not score(ITEM, answer)


def test_truth_is_not_one() -> None:
    item = TaskItem("code", "test", "any", "any", frozenset(), "any", "def f(x):\n    return x == 1", ("[1]",))
    assert score(item, "def f(x):\n    return x < 2")
    assert not score(item, "def f(x):\n    return 1")


def test_code_that_never_ends_is_ended_by_the_processor_limit() -> None:
    began = time.monotonic()
    assert not works("def f(x):\n    while True:\n        pass")
    assert time.monotonic() - began < 9


def test_code_that_sleeps_is_ended_by_the_clock() -> None:
    began = time.monotonic()
    assert all(outcome.failed for outcome in run("import time\ndef f(x):\n    time.sleep(60)", wall_s=0.5))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "body",
    [
        "return open('/etc/passwd').read()",
        "return open('/tmp/left-behind', 'w').write('x')",
        "import os; return os.fork()",
        "import os; return os.listdir('/')",
        "import os; return os.system('true')",
        "import os; return os.kill(os.getppid(), 0)",
        "import posix; return posix.fork()",
        "import subprocess; return subprocess.run(['true']).returncode",
        "import socket; return str(socket.socket())",
        "import ctypes; return 1",
        "import _thread; return _thread.start_new_thread(print, ())",
        "import sys; r = sys.modules['resource']; r.setrlimit(r.RLIMIT_CPU, (9, 9)); return 1",
    ],
)
def test_code_reaches_no_file_no_process_no_socket(body: str) -> None:
    assert not works(f"def f(x):\n    {body}")


@pytest.mark.parametrize(
    "body", ["return 'x' * 10 ** 10", "return [0] * 10 ** 9", "return 'x' * 10 ** 6", "return {1}"]
)
def test_code_is_bounded_in_memory_and_output(body: str) -> None:
    assert not works(f"def f(x):\n    {body}")


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise MemoryError",
        "def f(x):\n    return f(x)",
        "f = 3",
        "x" * (MAX_SOURCE_CHARS + 1),
    ],
)
def test_code_that_leaves_early_has_failed(source: Any) -> None:
    assert not works(source)


def test_what_code_prints_is_not_taken_for_its_result() -> None:
    source = 'print(\'[{"value": 7}, {"value": 7}]\', flush=True)\ndef f(x):\n    return x'
    assert [outcome.value for outcome in run(source)] == [1, 2]


@pytest.mark.parametrize(
    ("template", "argument", "expected"),
    [
        ("above", [10, -9], [10]),
        ("below", [10, -9], [-9]),
        ("count_multiples", [0, 2520, 2521], 2),
        ("sum_squares", [1, -2, 3], 14),
        ("average", [1, 2, 6], 3),
        ("spread", [4, -1, 9], 10),
        ("largest", [5], [5]),
        ("running_total", [1, -2, 5], [1, -1, 4]),
        ("lengths", ["aa", "b"], {"aa": 2, "b": 1}),
        ("longest", ["a", "ccc", "bb"], "ccc"),
        ("reverse_each", ["ab", "c"], ["ba", "c"]),
        ("occurrences", ["a", "b", "a"], {"a": 2, "b": 1}),
        ("unique", ["b", "a", "b"], ["b", "a"]),
        ("vowels", "banana", 3),
        ("palindrome", "abba", True),
        ("sorted_words", "b a c", ["a", "b", "c"]),
    ],
)
def test_references_do_what_their_skill_says(template: str, argument: Any, expected: Any) -> None:
    item = next(item for item in generate("code", "test", len(code_templates()), seed=2) if item.template == template)
    name = item.reference.removeprefix("def ").partition("(")[0]
    assert run_function(item.reference, name, [json.dumps([argument])])[0].value == expected
