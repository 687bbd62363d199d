"""A real Prometheus for a test: Debian's, on loopback, with a data folder of its own."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "amalgam.json"
SCRAPE_S = 1
INSTALLED = shutil.which("prometheus") is not None and shutil.which("promtool") is not None
MISSING = "prometheus and promtool are not installed (Debian: apt-get install prometheus)"

_METRIC = re.compile(r"\b(?:amalgam_|vllm:|process_|(?:adapter|tenant):amalgam_)[a-z0-9_:]*[a-z0-9]\b")


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of ``expression``; an error of Prometheus fails the test with its words."""
        answer = httpx.post(f"{self.url}/api/v1/query", data={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its ``query``, ``health`` and ``lastError``, once all have been evaluated."""
        deadline = time.monotonic() + 30
        while True:
            groups = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
            found = [rule for group in groups for rule in group["rules"]]
            if found and all(rule["health"] != "unknown" for rule in found):
                return found
            assert time.monotonic() < deadline, "the rules are not evaluated"
            time.sleep(0.2)

    def wait_for(self, expression: str, limit_s: float = 30) -> list[dict[str, Any]]:
        """`query`, until it has an answer."""
        deadline = time.monotonic() + limit_s
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"{expression} has no answer after {limit_s} s"
            time.sleep(0.2)
        return found


@contextmanager
def scraping(target_url: str, folder: Path) -> Iterator[Prometheus]:
    """Prometheus with our rules, scraping ``target_url`` every second while the block runs."""
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "amalgam", "static_configs": [{"targets": [target_url.removeprefix("http://")]}]}
        ],
    }
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        running = Prometheus(f"http://127.0.0.1:{port}")
        _wait_ready(running.url, process, folder / "log")
        yield running
    finally:
        process.terminate()
        process.wait(20)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/-/ready", timeout=1).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"Prometheus is not ready: {log.read_text()}")


def dashboard_queries() -> list[tuple[str, str]]:
    """Title and expression of every query of the dashboard, its variables filled in as for all servers and adapters."""
    board = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]  # fmt: skip
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\S+), (\S+)\)", variable["query"]).groups()  # type: ignore[union-attr]
            found.append((f"variable {variable['name']}", f"count by ({label}) ({metric})"))
    values = {"$__rate_interval": "1m", "$instance": ".*", "$adapter": ".*", "$alias": ".*", "$tenant": ".*"}
    return [(title, re.sub(r"\$\w+", lambda match: values[match[0]], expression)) for title, expression in found]


def metrics_named_in(expression: str) -> set[str]:
    """The metrics an expression asks for, recorded ones included."""
    return set(_METRIC.findall(expression))
