"""What the quality table compares: every merge method as one would first try it, and searches for better settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amalgam.merge.methods import METHODS
from amalgam_demo.tasks import generate

ADAPTERS = ("sql", "code", "json")
"""Each has a task of its own name."""
PROMPTS = 10
"""Of an input, for a fit."""
SEED = 1
"""Of the questions; the cards' scores are of seed 0, which adapters were looked at with while they were made."""
LAYERS = 30
"""Of the demo model."""


@dataclass(frozen=True)
class Contender:
    """A model to score.

    Attributes:
        method: of the table of methods; empty for what is not a merge.
        setting: how it came to be, for people.
        model: a name or an expression, as in a request.
        recipes: adapters to be merged before it is asked for: name -> recipe or expression, in order.
        fit: what the server fits the sum of the adapters by; the result is ``model``.
    """

    method: str
    setting: str
    model: str
    recipes: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Search:
    """A sweep on the development split; its winner is scored on held-out items.

    Attributes:
        label: what the winner is a member of.
        body: the request's ``search``.
    """

    label: str
    body: Mapping[str, Any]


def singles(base: str) -> tuple[Contender, ...]:
    """The base model, and each adapter alone."""
    return (Contender("", "base model", base), *(Contender("", "adapter alone", name) for name in ADAPTERS))


def fits() -> tuple[Contender, ...]:
    """The sum of all adapters, fitted by the server: by prompts alone, and by prompts with what is wanted."""
    rows = {name: generate(name, "dev", PROMPTS, SEED) for name in ADAPTERS}
    prompts = {name: [item.prompt for item in items] for name, items in rows.items()}
    wanted = {
        name: [{"messages": item.messages, "reference": item.reference} for item in items]
        for name, items in rows.items()
    }
    said = f"fitted to {PROMPTS} prompts of each on the development split"
    return (
        Contender("task_arithmetic", said, "fitted", fit={"method": "iteris", "prompts": prompts}),
        Contender(
            "task_arithmetic", f"{said}, with references", "fitted-by-items",
            fit={"method": "iteris", "by": "items", "items": wanted},
        ),
    )  # fmt: skip


_WITH_DEFAULTS = (
    "task_arithmetic", "linear", "multislerp", "karcher", "model_stock", "ties", "magnitude_prune", "dare_linear",
    "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties", "sce", "tsv", "iso_c",
)  # fmt: skip


def at_defaults(calls: str) -> dict[str, str]:
    """Method -> all of ``calls``, such as "a, b, c", by it with weights of 1 and its own defaults.

    Left out: ``cat``, whose result is that of ``task_arithmetic`` at the rank that the server takes; what random
    methods give beside the first seed; the spaces beside the default, which the searches try.
    """
    return {name: f"{name}({calls}{'; seed=1' if METHODS[name].random else ''})" for name in _WITH_DEFAULTS}


def first_tries() -> tuple[Contender, ...]:
    """Every method on all three adapters as one would first try it."""
    calls = ", ".join(ADAPTERS)
    plain = [Contender(name, "weights 1, defaults", call) for name, call in at_defaults(calls).items()]
    return (
        *plain,
        Contender("svd", "weights 1, truncated to rank 8", f"svd({calls}; rank=8)"),
        Contender("slerp", "two, then the third: an even arc", "slerp(sql-code, json; t=0.3333)", {
            "sql-code": "slerp(sql, code; t=0.5)",
        }),
        Contender("passthrough", "a third of the layers each", "by-layers", {"by-layers": _thirds()}),
        Contender("task_arithmetic", "weights 1, calibrate=pico", f"task_arithmetic({calls}; calibrate=pico)"),
        Contender("task_arithmetic", "weights 1, norm_balance", f"task_arithmetic({calls}; norm_balance=true)"),
    )  # fmt: skip


def _thirds() -> dict[str, Any]:
    third = LAYERS // len(ADAPTERS)
    inputs = [
        {"adapter": name, "weight": [{"layers": f"{at * third}-{(at + 1) * third - 1}", "value": 1.0}]}
        for at, name in enumerate(ADAPTERS)
    ]
    return {"method": "passthrough", "inputs": inputs}


def searches(trials: int) -> tuple[Search, ...]:
    """Random searches, one a family of methods, each of so many candidates at most."""
    wide, near, scale = _weights(0.25, 1.0), _weights(0.6, 1.4), _between(0.7, 1.5)
    return (
        _search("sums", trials, ["task_arithmetic"], wide),
        _search("means on the sphere", trials, ["karcher", "multislerp"], near),
        _search("ties in knots", trials, ["ties"], near, ["knots"], _between(0.5, 1.0), scale),
        _search("ties in core", trials, ["ties"], near, ["core"], _between(0.5, 1.0), scale),
        _search("ties on deltas", trials, ["ties"], near, ["delta"], _between(0.1, 1.0), scale),
        _search("dropped by chance", trials, ["dare_ties", "della"], near, ["delta"], _between(0.5, 0.8), scale),
        _search("breadcrumbs", trials, ["breadcrumbs_ties"], near, ["delta", "knots"], _between(0.6, 0.98), scale),
        _search("sce", trials, ["sce"], {}, ["knots", "core", "delta"], _between(0.3, 1.0), scale),
        _search("tsv", trials, ["tsv"], {}, [], None, _between(0.3, 1.0)),
        _search("iso_c", trials, ["iso_c"], near, [], None, scale),
    )


def _search(
    label: str,
    trials: int,
    methods: Sequence[str],
    weights: Mapping[str, Any],
    spaces: Sequence[str] = (),
    density: Mapping[str, float] | None = None,
    scale: Mapping[str, float] | None = None,
) -> Search:
    body: dict[str, Any] = {"kind": "random", "trials": trials, "seed": 1, "methods": methods, "spaces": spaces}
    axes = {"weights": weights, "density": density, "lambda": scale}
    return Search(label, body | {name: axis for name, axis in axes.items() if axis})


def _weights(low: float, high: float) -> dict[str, Any]:
    return {name: _between(low, high) for name in ADAPTERS}


def _between(low: float, high: float) -> dict[str, float]:
    return {"low": low, "high": high}
