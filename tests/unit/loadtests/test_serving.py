from typing import Any
from xml.etree import ElementTree

import pytest

from loadtests.bench_client import Figures, Record
from loadtests.plots import Point, grouped_bars, lines, nice_top
from loadtests.serving import FULL, fairness_of, rows_of
from loadtests.serving_page import points_of, serving_page


def figures(tokens_per_s: float, records: tuple[Record, ...]) -> Figures:
    return Figures(tokens_per_s, 1, 10, 20, 5, 6, 5, 100, 200, 0, records)


def records(ttfts: dict[str, float], times: int) -> tuple[Record, ...]:
    return tuple(Record(name, ttft, 10 * ttft, 8) for name, ttft in ttfts.items() for _ in range(times))


EVEN = figures(100, records({"a": 10, "b": 10, "c": 10}, 5))
STARVED = figures(80, records({"a": 10, "b": 10, "c": 50}, 5))


def test_fairness_is_of_service_and_not_of_demand() -> None:
    asked_more = figures(100, (*records({"a": 10}, 50), *records({"b": 10}, 1)))
    assert fairness_of([asked_more]) == {"jain": pytest.approx(1)}, "one request says nothing of a tail"
    assert fairness_of([EVEN]) == {"jain": pytest.approx(1), "worst over median": 1}
    starved = fairness_of([STARVED])
    assert starved["worst over median"] == 5
    assert starved["jain"] == pytest.approx(2.2**2 / (3 * 2.04))


def test_tails_are_of_all_rounds_together() -> None:
    few = figures(100, records({"a": 10, "b": 30}, 3))
    assert "worst over median" not in fairness_of([few])
    assert fairness_of([few, few])["worst over median"] == pytest.approx(1.5)


def report(slots: int = 4) -> dict[str, Any]:
    sides = {"amalgam": [EVEN, EVEN], "vllm": [STARVED, STARVED]}
    slow = {"amalgam": [figures(90, EVEN.records)], "vllm": [figures(40, EVEN.records)]}
    rows = rows_of({(8, "uniform"): sides, (5, "zipf"): sides, (1000, "zipf"): slow}, slots)
    return {
        "title": "Serving <many>", "machine": "a & b", "versions": {"vllm": "1"}, "date": "2030-01-31", "rounds": 2,
        "command": "python x", "notes": {"A burst": "8"},
        "rows": [{"case": row.case, "unit": row.unit, "ours": list(row.ours), "theirs": list(row.theirs),
                  "ratio": row.ratio, **row.extra} for row in rows],
    }  # fmt: skip


def test_rows_say_ratio_fairness_and_loss() -> None:
    rows = {row["case"]: row for row in report()["rows"]}
    assert rows["8 registered, uniform: output_tokens_per_s"]["ratio"] == pytest.approx(1.25)
    worst = rows["8 registered, uniform: worst adapter's p99 TTFT over the median one's"]
    assert (worst["ours"], worst["theirs"], worst["target"]) == ([1], [5], "≤ 3")
    roomy = {row["case"]: row for row in report(slots=16)["rows"]}
    assert "target" not in roomy["8 registered, uniform: worst adapter's p99 TTFT over the median one's"]
    loss = rows["zipf: throughput, 1000 registered over 5"]
    assert (loss["ours"], loss["theirs"]) == ([0.9], [0.5])


def test_the_full_plan_asks_for_every_popularity_where_they_differ() -> None:
    assert [len(FULL.popularities(count)) for count in FULL.counts] == [1, 1, 4, 4, 4]
    assert FULL.counts[0] == 1
    assert FULL.counts[-1] == 1000


def test_the_page_stands_alone_and_shows_every_row() -> None:
    page = serving_page(report())
    tree = ElementTree.fromstring(page.removeprefix("<!doctype html>").replace('<meta charset="utf-8">', ""))
    assert tree.find("body/h1").text == "Serving <many>"  # type: ignore[union-attr]
    assert len(tree.findall(".//tr")) == len(report()["rows"]) + 1
    for outside in ("<script", "http://", "https://", "url("):
        assert outside not in page.replace("http://www.w3.org/2000/svg", "")
    assert "Throughput, zipf, tokens/s" in page
    assert "1,000 registered" in page


def test_points_are_medians_with_their_spread() -> None:
    rows = [{"case": "8 registered, zipf: itl_p50_ms", "ours": [3, 1, 2], "theirs": [4]},
            {"case": "8 registered: memory, all processes", "ours": [1], "theirs": [1]}]  # fmt: skip
    assert points_of(rows) == {(8, "zipf", "itl_p50_ms"): {"ours": Point(2, 1, 3), "theirs": Point(4, 4, 4)}}


@pytest.mark.parametrize(("value", "top"), [(0, 1), (1, 1), (3.9, 4), (4.1, 8), (9, 10), (130, 200), (0.03, 0.04)])
def test_axes_end_at_round_numbers_above_the_greatest(value: float, top: float) -> None:
    assert nice_top(value) == pytest.approx(top)


def test_plots_stay_inside_their_frame_and_leave_gaps() -> None:
    points = [Point(5, 4, 9.9), None, Point(0, 0, 0)]
    for plot in (grouped_bars, lines):
        svg = ElementTree.fromstring(plot("t", "ms", ["a", "b", "c"], {"x": points, "y": [None, None, points[0]]}))
        width, height = float(svg.get("width", 0)), float(svg.get("height", 0))
        for shape in svg.iter():
            for key, bound in (
                ("x", width),
                ("x2", width),
                ("cx", width),
                ("y", height),
                ("y2", height),
                ("cy", height),
            ):
                if shape.get(key):
                    assert 0 <= float(shape.get(key, 0)) <= bound
            if shape.get("height") and shape is not svg:
                assert float(shape.get("height", 0)) > 0
    bars = ElementTree.fromstring(grouped_bars("t", "ms", ["a", "b", "c"], {"x": points}))
    assert len([rect for rect in bars.iter() if rect.tag.endswith("title")]) == 2
