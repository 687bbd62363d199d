"""What the console's pages take in a browser: the first view, and lists of ten thousand adapters. No model is involved.

The application is the real one with a stand-in for the engine; the browser is Debian's Chromium without a window. A
pause is the longest time between two turns of a timer of the page, which has one every 4 ms, from click to rows.
The same is done with a few adapters, so that the ratio says what the number costs.

    python loadtests/console.py [--adapters 10000] [--rounds 9] [--out console]
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from amalgam.registry.database import sqlite_url  # noqa: E402
from loadtests.many_adapters import FEW, name_of, register, registry_at, serving, store_one  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from tests.browser.chromium import launch_options  # noqa: E402
from tests.support.running_app import ADMIN_KEY, write_base  # noqa: E402

Samples = dict[str, tuple[str, list[float]]]
"""Case -> unit and samples."""
TARGETS = {
    "first view: shown": "≤ 1000 ms",
    "first view: over the wire": "≤ 500 kB",
    "open the list: longest pause": "≤ 100 ms",
    "next page: longest pause": "≤ 100 ms",
    "search: longest pause": "≤ 100 ms",
    "add to the lab: longest pause": "≤ 100 ms",
}
_WATCH = """
    sessionStorage.setItem("amalgam.key", KEY);
    let last = performance.now();
    window.longestPause = 0;
    setInterval(() => {
        const now = performance.now();
        window.longestPause = Math.max(window.longestPause, now - last);
        last = now;
    }, 4);
"""
"""Kept in every page: the key of the tab, and the longest pause since it was last set to 0."""
_ACT = """async ([act, done]) => {
    await new Promise((resolve) => setTimeout(resolve, 100));
    window.longestPause = 0;
    const began = performance.now();
    new Function(act)();
    const ready = new Function(`return ${done}`);
    while (!ready()) {
        if (performance.now() - began > 60000) throw new Error(`never: ${done}`);
        await new Promise((resolve) => setTimeout(resolve, 2));
    }
    const took = performance.now() - began;
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0)));
    return [took, window.longestPause];
}"""


@contextmanager
def tab(browser: Browser) -> Iterator[Page]:
    """A fresh tab with a key and without a cache."""
    context = browser.new_context(bypass_csp=True)
    context.add_init_script(_WATCH.replace("KEY", repr(ADMIN_KEY)))
    yield context.new_page()
    context.close()


def first_view(page: Page, url: str) -> tuple[float, float]:
    """Milliseconds until the overview's figures stand there, and kilobytes over the wire until then."""
    got = [0.0]
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: got.__setitem__(0, got[0] + event["encodedDataLength"]))
    page.goto(f"{url}/console/")
    page.wait_for_function("document.querySelectorAll('.figure').length > 5")
    return float(page.evaluate("performance.now()")), got[0] / 1e3


def measure_tab(page: Page, url: str, count: int) -> Samples:
    """One round in a fresh tab."""
    shown_ms, weight_kb = first_view(page, url)
    seen: Samples = {
        "first view: shown": ("ms", [shown_ms]),
        "first view: over the wire": ("kB", [weight_kb]),
    }

    def act(case: str, script: str, done: str) -> None:
        took, pause = page.evaluate(_ACT, [script, done])
        seen[f"{case}: rows shown"] = ("ms", [took])
        seen[f"{case}: longest pause"] = ("ms", [pause])

    links = "[...document.querySelectorAll('tbody a')].map((link) => link.textContent)"
    press = "[...document.querySelectorAll('button')].find((one) => one.textContent === 'Next').click()"
    names = sorted(name_of(number) for number in range(count))
    wanted = names[-1]
    typed = (
        "const box = document.querySelector('{box}'); box.value = '{text}';"
        "box.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )
    act("open the list", "location.hash = '#/adapters'", f"{links}[0] === '{names[0]}'")
    if count > FEW:
        act("next page", press, f"{links}[0] === '{names[50]}'")
    act("search", typed.format(box="input[type=search]", text=wanted), f"{links}[0] === '{wanted}'")
    page.goto(f"{url}/console/#/lab")
    page.get_by_label("Add an adapter").wait_for()
    added = f"document.querySelector('.slider .name')?.textContent === '{wanted}'"
    act("add to the lab", typed.format(box=".inputs input[list]", text=wanted), added)
    return seen


def measure(folder: Path, count: int, rounds: int) -> Samples:
    """All rounds with one number of adapters; the first is dropped."""
    folder.mkdir()
    write_base(folder / "base")
    url = sqlite_url(folder / "registry.sqlite3")

    async def fill() -> None:
        async with registry_at(url) as registry:
            await register(registry, store_one(folder), count)

    asyncio.run(fill())
    found: Samples = {}
    with serving(folder, url) as (server, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options())
        for round_number in range(-1, rounds):
            with tab(browser) as page:
                seen = measure_tab(page, server.url, count)
            for case, (unit, values) in seen.items() if round_number >= 0 else ():
                found.setdefault(case, (unit, []))[1].extend(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        few = measure(Path(folder) / "few", FEW, given.rounds)
        many = measure(Path(folder) / "many", given.adapters, given.rounds)
    rows = [
        Row(case, unit, values, few.get(case, ("", values))[1], {"target": TARGETS.get(case, "")})
        for case, (unit, values) in many.items()
    ]
    notes = {"load average before": round(load_before, 2), "note": given.note}
    write_report(
        f"The console with {given.adapters} adapters", rows, rounds=given.rounds, out=given.out, notes=notes,
        ours=f"{given.adapters} adapters", theirs=f"{FEW} adapters",
    )  # fmt: skip


if __name__ == "__main__":
    main()
