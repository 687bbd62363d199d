"""Every shell block of the README and the manual, run once as it stands; the tour against what it says comes back.

Only the address is replaced, and a key added, by a function around curl. A block that is new runs here from its first
day; one that cannot is named in ``NOT_RUN`` with the reason.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from typer.testing import CliRunner

from amalgam.__main__ import app
from amalgam.cli.client import DEFAULT_URL
from amalgam.demo.adapters import demo_adapter_folders
from amalgam.demo.base_model import ensure_base_model
from amalgam.settings import Settings
from tests.e2e.conftest import ADMIN_KEY, API_KEY, RunningServer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LIMIT_S = 300
"""Of one script; a tenth of it where nothing else runs."""
NOT_RUN = {
    "README Two commands 1": "sets up an environment and runs these very tests",
    "README Two commands 2": "installs packages into the environment it is run in",
}
MAY_ANSWER = {
    ("merging On a server 1", ":cancel"): 409,  # the job may be done by then
    ("evaluating Sweeps 1", ":promote"): 409,  # the sweep is not done by then
    ("tenants A tour 1", "/v1/chat/completions"): 404,  # one of them is out of the key's scope
}
"""Answers beside 2xx, by block and end of the path."""
SOURCE_ROOT = "/srv/adapters"
PRELUDE = r"""
amalgam() { "$PYTHON" -m amalgam "$@"; }
curl() {  # with the key; a placeholder for an id is that of what was submitted last; every status is noted
  local given=("${@//JOB_ID/${ID:-}}") said
  given=("${given[@]//\/ID/\/${ID:-}}")
  said=$(command curl -sS -H "Authorization: Bearer $KEY" -w '%{stderr}%{http_code} %{url_effective}\n' "${given[@]}" \
    2>> "$STATUSES") || return
  [[ " $* " == *" -d "* && $said =~ \"id\":\"((job|eval)-[^\"]+)\" ]] && ID=${BASH_REMATCH[1]}
  printf '%s\n' "$said"
}
"""


@dataclass(frozen=True)
class Block:
    """One fenced block: the page and the section it stands in, its place there, and what it says."""

    name: str
    text: str

    @property
    def is_local(self) -> bool:
        """Whether it needs no server: commands of ours alone."""
        commands = [line for line in self.text.splitlines() if line and not line.startswith((" ", "#"))]
        return all(line.startswith(("amalgam merge ", "amalgam export ")) for line in commands)


def blocks(language: str) -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        for section in page.read_text().split("\n## "):
            title = section.partition("\n")[0]
            texts = re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
            found += [Block(f"{page.stem} {title} {place}", text) for place, text in enumerate(texts, 1)]
    return found


SHELL = blocks("bash")
TOUR = [block for block in SHELL if block.name.startswith(("README Tour ", "tour "))]
LOCAL = [block for block in SHELL if block.is_local]
REST = [block for block in SHELL if block not in (*TOUR, *LOCAL) and block.name not in NOT_RUN]


@dataclass(frozen=True)
class Ran:
    """What came of a script."""

    out: str
    statuses: list[tuple[int, str]]
    """Of each request, with its address."""


class Terminal:
    """A folder like the one a reader sits in, and a shell there."""

    def __init__(self, server: RunningServer, folder: Path) -> None:
        self._server = server
        self.folder = folder

    def run(self, script: str) -> Ran:
        script = script.replace(DEFAULT_URL, self._server.url).replace(SOURCE_ROOT, str(self._server.sources))
        notes = self.folder / "statuses"
        notes.write_text("")
        given = {"KEY": ADMIN_KEY, "STATUSES": str(notes), "PYTHON": sys.executable, "LC_ALL": "C.UTF-8"}
        given |= {"AMALGAM_URL": self._server.url, "AMALGAM_ADMIN_KEY": ADMIN_KEY}
        try:
            done = subprocess.run(
                ["bash", "-eu", "-c", PRELUDE + script],
                cwd=self.folder, env=os.environ | given, capture_output=True, text=True, timeout=LIMIT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"not done after {LIMIT_S} s:\n{(late.stdout or b'').decode()[-4000:]}\n{notes.read_text()}")
        told = notes.read_text()
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{told}"
        statuses = [line.split(" ", 1) for line in told.splitlines()]
        return Ran(done.stdout, [(int(status), url) for status, url in statuses])


def fill(folder: Path) -> Path:
    """The demo adapters and the base model under the names that the pages use for folders."""
    for name, source in (demo_adapter_folders() | {"mine": demo_adapter_folders()["code"]}).items():
        shutil.copytree(source, folder / name)
    (folder / "smollm2").symlink_to(ensure_base_model(Settings().storage.cache_dir, lambda phase: None))
    recipe = {"method": "linear", "inputs": [{"adapter": "./sql"}, {"adapter": "./json"}]}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(scope="session")
def shell() -> None:
    missing = [program for program in ("bash", "curl") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture
def terminal(shell: None, server: RunningServer, admin: httpx.Client, tmp_path: Path) -> Iterator[Terminal]:
    shutil.copytree(demo_adapter_folders()["json"], server.sources / "mine", dirs_exist_ok=True)
    exports = [server.store.parent / "exports" / name for name in ("smollm2-sql", "smollm2-mix")]
    for folder in exports:
        shutil.rmtree(folder, ignore_errors=True)
    yield Terminal(server, fill(tmp_path))
    for one in admin.get("/admin/v1/evaluations").json()["data"]:
        if one["state"] in ("queued", "running"):
            assert admin.post(f"/admin/v1/evaluations/{one['id']}:cancel").status_code in (200, 409)
    for folder in exports:
        shutil.rmtree(folder, ignore_errors=True)


def expected(block: Block) -> list[str]:
    """What stands behind ``# ->``, as patterns; ``…`` is anything on the line."""
    told = re.findall(r"^# -> (.+)$", block.text, re.MULTILINE)
    return [".*".join(map(re.escape, text.split("…"))) for text in told]


def require_expected(block: Block, answer: str) -> None:
    """What the block says that comes back does, in that order."""
    rest = answer
    for pattern in expected(block):
        found = re.search(pattern, rest)
        assert found, f"{block.name}: {pattern!r} does not follow in\n{answer}"
        rest = rest[found.end() :]


def test_the_tour_comes_out_as_its_pages_say(terminal: Terminal) -> None:
    """One shell, as a reader has who goes from the README to docs/tour.md: functions and variables last."""
    mark = "=== end of block ==="
    ran = terminal.run("".join(f"{block.text}\nprintf '\\n{mark}\\n'\n" for block in TOUR))
    assert [status for status in ran.statuses if status[0] >= 300] == []
    answers = ran.out.split(mark)[:-1]
    assert len(answers) == len(TOUR) >= 6
    for block, answer in zip(TOUR, answers, strict=True):
        require_expected(block, answer)
    assert sum(len(expected(block)) for block in TOUR) >= 12


@pytest.mark.parametrize("block", REST, ids=lambda block: block.name)
def test_a_block_of_a_page_is_answered(terminal: Terminal, block: Block) -> None:
    ran = terminal.run(block.text)
    code = re.sub(r"^#.*$", "", block.text, flags=re.MULTILINE)
    assert len(ran.statuses) == len(re.findall(r"\bcurl ", code)) > 0
    for status, url in ran.statuses:
        path = url.partition("?")[0]
        other = {code for (name, end), code in MAY_ANSWER.items() if name == block.name and path.endswith(end)}
        assert status in {200, 201, 202, *other}, (url, ran.out)
    require_expected(block, ran.out)


@pytest.mark.parametrize("block", LOCAL, ids=lambda block: block.name)
def test_a_block_without_a_server_is_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path))
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "amalgam", line
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.stderr}"


def test_the_python_of_the_manual_says_what_its_comments_say(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = blocks("python")
    text = block.text.replace(DEFAULT_URL, server.url)
    names: dict[str, object] = {}
    exec(compile(text.replace('api_key="none"', f'api_key="{API_KEY}"'), block.name, "exec"), names)
    assert isinstance(names["client"], openai.OpenAI)
    names["client"].close()
    told = capsys.readouterr().out.splitlines()
    comments = re.findall(r"^print.*  # (.+)$", text, re.MULTILINE)
    assert told[0] == comments[0].partition(":")[0]
    assert told[1].startswith(comments[1].partition("…")[0].strip())
    assert told[2].startswith("def long_orbits(km):")


def test_every_block_is_run_or_says_why_not() -> None:
    names = [block.name for block in SHELL]
    assert sorted(names) == sorted([block.name for block in (*TOUR, *LOCAL, *REST)] + list(NOT_RUN))
    assert {name for name, _ in MAY_ANSWER} <= {block.name for block in REST}
    others = {kind for page in PAGES for kind in re.findall(r"^```(\w+)$", page.read_text(), re.MULTILINE)}
    assert others == {"bash", "python", "py", "json", "toml"}  # py and toml: excerpts, which are not run
