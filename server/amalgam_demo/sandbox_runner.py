"""The inner half of the sandbox: run as a script in a process of its own, it limits itself, then runs the code.

It reads ``{"source", "function", "cases"}`` as JSON from standard input and writes one ``{"value": ...}`` or
``{"error": ...}`` per case to standard output. It never sees what is expected, so code that forges its output has
nothing to forge it from. It imports nothing of this package: it runs with an empty module path.
"""

import collections
import functools
import itertools
import json
import math
import operator
import os
import re
import resource
import string
import sys

ALLOWED = (collections, functools, itertools, json, math, operator, re, string)
"""The code may import these; everything else would have to be read from disk, and that is refused."""
CPU_S = 2
MEMORY_BYTES = 512 << 20
OUTPUT_BYTES = 64 << 10
NOBODY = 65534
QUIET_EVENTS = frozenset({"compile", "exec", "object.__getattr__", "sys._getframe", "builtins.id", "sys.excepthook"})
"""They are audit events of plain computation. Files, sockets, processes, imports from disk all raise others."""


def _refuse(event: str, _arguments: object) -> None:
    """Audit hook: anything that is not plain computation ends in an error."""
    if event not in QUIET_EVENTS:
        raise PermissionError(f"{event} is not allowed here")


def _own_output() -> int:
    """Move standard output to a descriptor of its own, so that ``print`` in the code reaches nobody."""
    results = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return results


def _limit(results: int) -> None:
    """Bound time, memory, output, files and processes; leave root, which process limits do not bind."""
    limits = {
        resource.RLIMIT_CPU: CPU_S,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_FSIZE: OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: results + 1,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in limits.items():
        resource.setrlimit(kind, (bound, bound))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _outcomes(source: str, function: str, cases: list[list[object]]) -> list[dict[str, object]]:
    """What ``function`` returns for each case's arguments."""
    scope: dict[str, object] = {"__name__": "answer"}
    try:
        exec(compile(source, "<answer>", "exec"), scope)  # noqa: S102 -- the purpose of this process
        code = scope[function]
    except BaseException as error:  # SystemExit and MemoryError of the code are its own failure
        return [{"error": type(error).__name__}] * len(cases)
    return [_outcome(code, case) for case in cases]


def _outcome(code: object, arguments: list[object]) -> dict[str, object]:
    try:
        return json.loads(json.dumps({"value": code(*arguments)}, allow_nan=False))  # type: ignore[operator, no-any-return]
    except BaseException as error:
        return {"error": type(error).__name__}


def main() -> None:
    """Read the request, give up every right, run it, write the outcomes."""
    request = json.load(sys.stdin)
    results = _own_output()
    _limit(results)
    sys.addaudithook(_refuse)
    outcomes = _outcomes(request["source"], request["function"], request["cases"])
    os.write(results, json.dumps(outcomes).encode())
    os._exit(0)  # no exit handlers of the code run


if __name__ == "__main__":
    main()
