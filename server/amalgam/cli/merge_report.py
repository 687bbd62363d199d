"""A page about one merge, from its lineage alone: self-contained HTML with inline SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any, Final

from amalgam.cli.merge_report_svg import bars, curves, heat_map, shortened
from amalgam.domain.expression import print_expression
from amalgam.domain.fit import FitRecord
from amalgam.domain.recipe import Recipe, layer_of
from amalgam.errors.requests import FieldRefused

MAX_PAIRS: Final = 6
"""So many pairs of inputs get heat maps of their own; further ones are in the lineage."""

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;color:#111827;max-width:1100px;margin:32px auto;padding:0 20px}
h1{font-size:22px;margin-bottom:4px}h2{font-size:17px;margin-top:34px}
code{background:#f3f4f6;padding:2px 5px;border-radius:4px;overflow-wrap:anywhere}
table{border-collapse:collapse;margin:10px 0}td,th{padding:4px 12px;border-bottom:1px solid #e5e7eb;text-align:left}
svg{display:block;margin:14px 0;max-width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:#374151}svg .t{font-weight:600;font-size:13px;fill:#111827}
svg .e{text-anchor:end}svg .m{text-anchor:middle}.warn{background:#fef3c7;padding:8px 12px;border-radius:6px}
td{overflow-wrap:anywhere}.wide{overflow-x:auto}.tight td,.tight th{padding:3px 7px;font-size:13px;white-space:nowrap}
p.note{color:#4b5563;max-width:80ch}
"""


def render(lineage: Mapping[str, Any]) -> str:
    """The page.

    Args:
        lineage: What ``merge build`` wrote beside the weights, diagnostics included.

    Raises:
        FieldRefused: it holds no diagnostics.
    """
    modules = lineage.get("diagnostics") or []
    if not modules:
        raise FieldRefused("lineage", "it holds no diagnostics; build the merge again with this version")
    names = [str(name) for name in lineage["overall"]["inputs"]]
    sections = [
        _heading(lineage, names),
        _kept(lineage),
        "<h2>What is left of each input</h2>",
        "<p class='note'>Still applied: ⟨Δ_out, Δ_t⟩ / ‖Δ_t‖² over all modules; 1 means that the input acts in full, "
        "0 that nothing of it is left, below 0 that it is subtracted. Inside: the share of its energy that lies in the "
        "row and column spaces the result still has.</p>",
        _retention(lineage, modules, names),
        "<h2>Rank</h2>",
        _spectrum(modules),
        "<h2>Norms by layer</h2>",
        _norms(modules, names),
        "<h2>How the inputs relate</h2>",
        "<p class='note'>Cosine of the deltas: near 0 they leave each other alone, near 1 they say the same, below 0 "
        "they work against each other. Sign conflict: share of entries with opposite signs; 0.5 is chance.</p>",
        *_pairs(modules, names),
    ]
    title = f"Merge report: {lineage['recipe']['method']}"
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{''.join(sections)}</body></html>\n"
    )


def _heading(lineage: Mapping[str, Any], names: Sequence[str]) -> str:
    recipe = Recipe.model_validate(lineage["recipe"])
    result = lineage["result"]
    kept = result["energy_kept"]
    fit = FitRecord.model_validate(lineage["fit"]).outcome if lineage.get("fit") else "not fitted to prompts"
    facts = {
        "recipe": print_expression(recipe) or recipe.canonical_json(),
        "space": recipe.space,
        "fit": fit,
        "modules": f"{result['modules']} ({len(result['partial_modules'])} not adapted by every input)",
        "rank": result["rank"],
        "energy kept": "not computed" if kept is None else f"{kept:.4f}",
        "seed": recipe.seed,
        "computed on": ", ".join(lineage["computed_on"].values()),
        "versions": ", ".join(f"{name} {version}" for name, version in lineage["versions"].items()),
        "digest of the recipe": lineage["recipe_digest"],
    }
    rows = "".join(f"<tr><th>{escape(k)}</th><td><code>{escape(str(v))}</code></td></tr>" for k, v in facts.items())
    inputs = "".join(
        f"<tr><td>{i + 1}</td><td>{escape(name)}</td><td>{lineage['overall']['norms'][i]:.4g}</td>"
        + "".join(f"<td>{_span(lineage['input_factors'][name][key])}</td>" for key in ("rank", "scaling"))
        + f"<td>{lineage['input_factors'][name]['modules']}</td>"
        f"<td><code>{escape(lineage['inputs'][name][:16])}</code></td></tr>"
        for i, name in enumerate(names)
    )
    warnings = "".join(f"<p class='warn'>{escape(text)}</p>" for text in lineage["warnings"])
    return (
        f"{warnings}<table>{rows}</table><h2>Inputs, over all modules</h2>"
        f"<table><tr><th></th><th>input</th><th>norm</th><th>rank</th><th>scale</th><th>modules</th><th>digest</th></tr>"
        f"{inputs}</table>{_cosines(lineage, len(names))}"
    )


def _kept(lineage: Mapping[str, Any]) -> str:
    """What the merge keeps of its inputs' own answers, where that was measured."""
    inputs = (lineage.get("kept") or {}).get("inputs") or {}
    if not inputs:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{one['answers']:.0%} of {one['prompts']}</td><td>{one['alike']:.3f}</td>"
        f"<td>{one['agreement']:.3f}</td><td>{one['likelihood']:.3f}</td></tr>"
        for name, one in inputs.items()
    )
    return (
        "<h2>What is kept of each input's answers</h2><p class='note'>Each input answered prompts of its own, and the "
        "merge read the answers: how many it would have given alike to the end, how much of an answer before it "
        "departs, at how many tokens it agrees, and how likely the answers are to it beside the input itself.</p>"
        "<table><tr><th>input</th><th>whole answers</th><th>until it departs</th><th>tokens agreed</th>"
        "<th>likelihood</th></tr>"
        f"{rows}</table>"
    )


def _cosines(lineage: Mapping[str, Any], count: int) -> str:
    """The cosine of every pair, by the inputs' numbers: a table of its own, which scrolls where it is wide."""
    if count < 2:
        return ""
    heads = "".join(f"<th>{i + 1}</th>" for i in range(count))
    rows = "".join(
        f"<tr><th>{i + 1}</th>" + "".join(f"<td>{value:+.3f}</td>" for value in row) + "</tr>"
        for i, row in enumerate(lineage["overall"]["cosine"])
    )
    return (
        "<h2>Cosine of every pair, over all modules</h2>"
        f"<div class='wide'><table class='tight'><tr><th></th>{heads}</tr>{rows}</table></div>"
    )


def labels(names: Sequence[str]) -> list[str]:
    """Number and name of each input, less the folders that all share before and behind where they differ."""
    paths = [name.rstrip("/").split("/") for name in names]
    for end in (0, -1):
        while len(paths) > 1 and all(len(path) > 1 for path in paths) and len({path[end] for path in paths}) == 1:
            for path in paths:
                del path[end]
    return [f"{i + 1} {'/'.join(path)}" for i, path in enumerate(paths)]


def _span(ends: Sequence[float]) -> str:
    """Least and largest, or the one."""
    return "–".join(f"{end:.4g}" for end in dict.fromkeys(ends))


def _retention(lineage: Mapping[str, Any], modules: Sequence[Any], names: Sequence[str]) -> str:
    inside = []
    for name in names:
        energy = covered = 0.0
        for module in modules:
            given, result = module["given"], module["result"]
            if name in given["inputs"]:
                at = given["inputs"].index(name)
                energy += given["norms"][at] ** 2
                covered += result["inside"][at] * given["norms"][at] ** 2
        inside.append(covered / energy if energy else 0.0)
    series = {"still applied": lineage["overall"]["retention"], "inside the result's spaces": inside}
    return bars("By input", labels(names), series)


def _spectrum(modules: Sequence[Any]) -> str:
    """Cumulative energy by rank: the mean over modules, and the module that keeps least and most at the chosen rank."""
    found = [(_cumulative(m["result"]), m["result"]) for m in modules if m["result"]["spectrum"]]
    if not found:
        return "<p class='note'>No spectrum was computed.</p>"
    rank = max(result["rank"] for _, result in found)
    length = max(len(line) for line, _ in found)
    padded = [line + [line[-1]] * (length - len(line)) for line, _ in found]
    mean = [sum(line[i] for line in padded) / len(padded) for i in range(length)]
    at = min(rank, length) - 1
    ordered = sorted(padded, key=lambda line: line[at])
    series = {"mean over modules": mean, "module that keeps least": ordered[0], "module that keeps most": ordered[-1]}
    points = {name: [(0.0, 0.0), *((i + 1.0, v) for i, v in enumerate(line))] for name, line in series.items()}
    title = "Energy of the exact result, by rank"
    return curves(title, points, "rank", "share of the energy", {f"rank {rank}": float(rank)})


def _cumulative(result: Mapping[str, Any]) -> list[float]:
    squares = [value**2 for value in result["spectrum"]]
    seen = sum(squares[: result["rank"]])
    total = seen / result["energy_kept"] if result["energy_kept"] > 0 else sum(squares)
    line, at = [], 0.0
    for square in squares:
        at += square
        line.append(min(1.0, at / total) if total > 0 else 1.0)
    return line


def _norms(modules: Sequence[Any], names: Sequence[str]) -> str:
    sums: dict[str, dict[int, float]] = {name: {} for name in (*names, "result")}
    for module in modules:
        layer = layer_of(module["name"])
        if layer is None:
            continue
        given = module["given"]
        for name, norm in (*zip(given["inputs"], given["norms"], strict=True), ("result", module["result"]["norm"])):
            sums[name][layer] = sums[name].get(layer, 0.0) + norm**2
    titles = dict(zip((*names, "result"), (*labels(names), "result"), strict=True))
    series = {titles[n]: [(float(layer), v**0.5) for layer, v in sorted(by.items())] for n, by in sums.items() if by}
    return curves("Norm of each input and of the result", series, "layer", "Frobenius norm over the layer", {})


def _pairs(modules: Sequence[Any], names: Sequence[str]) -> list[str]:
    layered = [module for module in modules if layer_of(module["name"]) is not None]
    layers = sorted({layer_of(module["name"]) or 0 for module in layered})
    kinds = list(dict.fromkeys(module["name"].rpartition(".")[2] for module in layered))
    columns = [str(layer) for layer in layers]
    out = []
    shown = dict(zip(names, labels(names), strict=True))
    for one, other in list(combinations(names, 2))[:MAX_PAIRS]:
        cosine, conflict = {}, {}
        for module in layered:
            given = module["given"]
            # Of many inputs the pairs are not written module by module.
            if one in given["inputs"] and other in given["inputs"] and given["cosine"]:
                i, j = given["inputs"].index(one), given["inputs"].index(other)
                place = (module["name"].rpartition(".")[2], str(layer_of(module["name"])))
                cosine[place], conflict[place] = given["cosine"][i][j], given["sign_conflict"][i][j]
        if not cosine:
            continue
        reach = max([0.05, *(abs(value) for value in cosine.values())])
        spread = max([0.02, *(abs(value - 0.5) for value in conflict.values())])
        title = f"{shortened(shown[one])} and {shortened(shown[other])}"
        out.append(heat_map(f"Cosine: {title}", kinds, columns, cosine, -reach, reach))
        out.append(heat_map(f"Sign conflict: {title}", kinds, columns, conflict, 0.5 - spread, 0.5 + spread))
    if len(names) > 1 and not out:
        return ["<p class='note'>Of so many inputs no pair is kept module by module; the table above has them all.</p>"]
    return out or ["<p class='note'>There is only one input.</p>"]
