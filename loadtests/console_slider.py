"""From a slider's move in the merge lab to the blend's first token: Chromium, the real engine, the demo model.

Each move is to weights that nobody asked for before, so that each is a blend to be built. The time is the page's own:
from the slider's event, through the moment that the page waits for another move, to the first token on the page.
Beside it stands what the model alone takes on this machine: the first token of an adapter that is resident, asked for
the same prompt without a browser.

    python loadtests/console_slider.py [--rounds 25] [--out console_slider]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import start_amalgam  # noqa: E402
from tests.browser.chromium import launch_options  # noqa: E402

FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "16", "--max-loras", "4"]
PORT = 18447
TARGET_MS = 300.0
PROMPT = """CREATE TABLE tenants (tenant TEXT, rent INTEGER);
Question: What is the sum of the rent?
Answer with one SQL query only."""
_MOVE = """async (weight) => {
    const slider = document.querySelector('input[type="range"][aria-label="weight of json"]');
    const times = document.querySelector('[aria-label="The blend"] .times');
    const served = () => (/blend@[0-9a-f]+/.exec(times.textContent) ?? [""])[0];
    const before = served();
    const began = performance.now();
    slider.value = weight;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    return await new Promise((resolve) => {
        const watch = new MutationObserver(() => {
            if (served() === "" || served() === before) return;
            watch.disconnect();
            resolve([performance.now() - began, Number(times.querySelector(".first").textContent.split(" ")[0])]);
        });
        watch.observe(times, { childList: true, subtree: true, characterData: true });
    });
}"""


def moved(page: Page, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the move, and from the request, to the first token. Three moves warm up and are dropped."""
    whole, asked = [], []
    for number in range(-3, rounds):
        took, first = page.evaluate(_MOVE, str(round(-0.95 + 0.05 * (number + 3), 2)))
        # The rest of the answer is not to stand in the next one's way.
        page.locator('[aria-label="The blend"] .answer[aria-busy="false"]').wait_for()
        if number >= 0:
            whole.append(took)
            asked.append(first)
    return whole, asked


def resident(url: str, rounds: int) -> list[float]:
    """Milliseconds to the first token of an adapter that is there; each prompt is new from its first word on."""
    taken = []
    for number in range(-3, rounds):
        messages = [{"role": "user", "content": f"{number + 100} {PROMPT}"}]
        body = {"model": "sql", "messages": messages, "max_tokens": 8, "temperature": 0, "stream": True}
        began = time.perf_counter()
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    taken.append(1e3 * (time.perf_counter() - began))
                    break
            answer.close()
        time.sleep(0.5)  # Until the rest of the answer is out of the way.
    return taken[3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = Path(folder) / "store"
        server = start_amalgam(store, FLAGS, sources=Path(folder), port=PORT, AMALGAM_BLENDS_PER_MINUTE="100000")
        try:
            browser = playwright.chromium.launch(**launch_options())
            page = browser.new_page()
            page.goto(f"{server.url}/console/#/lab?recipe=sql%20-%20json")
            page.get_by_label("Tokens").fill("8")
            page.get_by_label("Tokens").blur()
            page.get_by_label("Prompt").fill(PROMPT)
            page.get_by_label("The blend").locator(".first").wait_for()
            whole, asked = moved(page, given.rounds)
            version = browser.version
            browser.close()
            alone = resident(server.url, given.rounds)
        finally:
            server.stop()
    rows = [
        Row("slider to first token", "ms", whole, [TARGET_MS], {"target": f"≤ {TARGET_MS:.0f} ms"}),
        Row("of which from the request", "ms", asked, [TARGET_MS]),
        Row("a resident adapter, the same prompt", "ms", alone, [TARGET_MS]),
    ]
    loads = {"load average before": round(load_before, 2), "load average after": round(os.getloadavg()[0], 2)}
    notes = {"Chromium": version} | loads | {"note": given.note}
    write_report(
        "A slider's move in the merge lab", rows, rounds=given.rounds, out=given.out, notes=notes,
        ours="the console", theirs="target",
    )  # fmt: skip


if __name__ == "__main__":
    main()
