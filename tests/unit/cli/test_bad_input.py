"""Every verb of the command line, given what is wrong: one line that says what to do, never a trace or library text."""

import json
import re
import threading
from collections.abc import Iterator
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from amalgam import __version__
from amalgam.__main__ import app
from tests.adapter_factory import write_lora

SMALL: dict[str, Any] = {"layers": 2, "hidden": 24, "heads_kv_dim": 12, "intermediate": 40}
NOBODY = "http://127.0.0.1:9"

VERBS: dict[str, list[str]] = {
    "adapters push": ["{good}"],
    "adapters pull": ["a", "-o", "{new}"],
    "adapters ls": [],
    "adapters show": ["a"],
    "adapters rm": ["a"],
    "adapters default": ["a", "1"],
    "adapters verify": [],
    "adapters rebuild": ["a@1"],
    "adapters profile show": ["a@1"],
    "adapters profile set": ["a@1", "--system", "Be brief."],
    "adapters profile on": ["a@1"],
    "adapters profile off": ["a"],
    "adapters profile rm": ["a@1"],
    "aliases ls": [],
    "aliases set": ["x", "a=1"],
    "aliases show": ["x"],
    "aliases rm": ["x"],
    "aliases rollback": ["x"],
    "aliases route": ["x", "{base}/config.json"],
    "aliases explain": ["x", "why?"],
    "ask": ["a", "why?"],
    "keys create": ["--tenant", "acme"],
    "keys ls": [],
    "keys update": ["0123456789abcdef", "--name", "Acme"],
    "keys rotate": ["0123456789abcdef"],
    "keys revoke": ["0123456789abcdef"],
    "tenants create": ["acme"],
    "tenants ls": [],
    "tenants update": ["acme", "--name", "Acme"],
    "tenants limit": ["acme", "sql*", "--requests-per-minute", "10"],
    "tenants rm": ["acme"],
    "experiments ls": [],
    "experiments show": ["x"],
    "experiments start": ["x"],
    "experiments stop": ["x"],
    "experiments outcomes": ["x"],
    "usage": [],
    "batches create": ["{base}/config.json"],
    "batches ls": [],
    "batches show": ["batch_1"],
    "batches cancel": ["batch_1"],
    "jobs ls": [],
    "jobs show": ["job-1"],
    "jobs cancel": ["job-1"],
    "merges create": ["c", "a + b"],
    "merge build": ["{good}", "-o", "{new}"],
    "merge plan": ["{good}"],
    "merge report": ["{made}", "-o", "{new}"],
    "export": ["{good}", "--base", "{base}", "-o", "{new}"],
}
"""Arguments that are right, where there is a server."""

OTHERS = {
    "serve": "starts a server; what it refuses is in test_vllm_flags and test_serve_safely",
    "engine": "starts engines; what it refuses is in tests/cluster/test_command_line",
    "worker": "has no arguments",
    "blender": "has no arguments",
    "doctor": "reports what is wrong, as its answer",
    "version": "has no arguments",
    "merge methods": "has no arguments",
    "demo install": "has a switch only",
    "demo train": "trains; below with what is wrong",
    "demo score": "asks a model; below with what is wrong",
}
ONLINE = [verb for verb in VERBS if verb not in ("merge build", "merge plan", "merge report", "export")]

NUMBERS = ["x", "-1", "0", "1e9", "nan", "", "99999999999999999999999"]
FOLDERS = ["missing", "file", "empty", "text", "cut", "deep", "no_config", "names", "folder_for_file", "types", "gguf"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good folders, and every kind of bad one."""
    root = tmp_path_factory.mktemp("places")
    places = {name: root / name for name in ("good", "made", "base", *FOLDERS)}
    for name in ("good", "text", "cut", "deep", "no_config", "names", "types"):
        write_lora(places[name], rank=2, **SMALL)
    for name in ("empty", "base", "gguf"):
        places[name].mkdir()
    (places["base"] / "config.json").write_text('{"model_type": "llama"}')
    places["file"].write_bytes(b"\xff\xfe\x00 not text")
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    (places["text"] / config).write_bytes(b'{"r": "\xff\xfe"}')
    whole = (places["cut"] / weights).read_bytes()
    (places["cut"] / weights).write_bytes(whole[: len(whole) // 2])
    (places["deep"] / config).write_text("[" * 100_000)
    (places["no_config"] / config).unlink()
    (places["names"] / config).write_text('{"peft_type": ["LOHA"], "r": {}, "target_modules": 3}')
    (places["folder_for_file"] / config).mkdir(parents=True)
    (places["folder_for_file"] / weights).mkdir()
    (places["types"] / config).write_text('{"peft_type": "LOHA", "r": null}')
    (places["gguf"] / "x.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    done = CliRunner().invoke(app, ["merge", "build", str(places["good"]), "-o", str(places["made"])])
    assert done.exit_code == 0, done.output
    return places


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, one in inner.items():
        yield from commands(one, f"{path} {name}".strip())


COMMANDS = dict(commands(typer.main.get_command(app)))


def run(verb: str, *arguments: str, **environment: str) -> str:
    """What stands on standard error, after what holds for every refusal."""
    done = CliRunner(env={"COLUMNS": "60"} | environment).invoke(app, [*verb.split(), *arguments])
    shown = f"{verb} {arguments}: {done.exit_code} {done.output[-2000:]} {done.exception!r}"
    assert isinstance(done.exception, SystemExit), shown
    assert done.exit_code in (1, 2), shown
    assert "Traceback" not in done.output, shown
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines, shown
    assert all(re.fullmatch(r" *(?:error|warning|[a-z_]+): .{12,}", line) for line in lines), shown
    assert len(lines) == 1 or verb in ("adapters push", "merge build", "merge plan", "export"), shown
    assert not re.search(
        r"pydantic|validation error|Input should|unable to parse|Errno|huggingface|site-packages|object at|\bNone\b",
        done.stderr,
    ), shown
    assert re.search(r"[a-z`')\]:./] ?[A-Z`][^.]* [^.]+|--help", lines[-1]), shown
    return done.stderr


def filled(verb: str, places: dict[str, Path], new: Path) -> list[str]:
    return [text.format(**places, new=new) for text in VERBS[verb]]


def test_every_verb_is_here() -> None:
    assert set(COMMANDS) == set(VERBS) | set(OTHERS)


def replaced(arguments: list[str], parameter: Any, position: int | None, value: str) -> list[str]:
    """The arguments with another value for one parameter."""
    if position is not None:
        return [*arguments[:position], value, *arguments[position + 1 :]]
    option = parameter.opts[0]
    kept = [
        text
        for i, text in enumerate(arguments)
        if text not in parameter.opts and (i == 0 or arguments[i - 1] not in parameter.opts)
    ]
    return [*kept, option, value]


def wrong_values(verb: str, parameter: Any, places: dict[str, Path]) -> list[str]:
    """What a parameter cannot be, by its type and its meaning."""
    name = parameter.name
    if parameter.bare_type in (int, float):
        return [value for value in NUMBERS if (value, name) not in (("0", "seed"), ("0", "revision"))]
    if name == "out":
        taken = [] if verb == "merge report" else [str(places["good"])]
        return ["/proc/nothing/x", str(places["file"] / "x"), *taken]
    if name in ("folder", "expression") and verb != "merges create":
        return [str(places[kind]) for kind in FOLDERS]
    if name in ("form", "dtype", "device", "backend", "max_workspace", "max_shard", "rank"):
        return ["nonsense", "", "-5", "inf", "nan", "\udcff"]
    return []


@pytest.mark.parametrize("verb", VERBS)
def test_every_parameter_with_every_wrong_value(verb: Any, places: Any, tmp_path: Path) -> None:
    right = filled(verb, places, tmp_path / "new")
    position = 0
    for parameter in COMMANDS[verb].params:
        place = None
        if parameter.param_type_name == "argument":
            place, position = position, position + 1
        for value in wrong_values(verb, parameter, places):
            arguments = replaced(right, parameter, place, value)
            options = ["--url", NOBODY] if verb in ONLINE else []
            # An argument that begins with a dash needs the dashes before it, and is the last one here.
            dashes = ["--"] if place is not None and value.startswith("-") else []
            run(verb, *options, *(arguments[:-1] + dashes + arguments[-1:] if dashes else arguments))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_too_many_too_few_and_unknown_words(verb: Any, places: Any, tmp_path: Path) -> None:
    right = filled(verb, places, tmp_path / "new")
    run(verb, *right, "--nonsense")
    if verb != "aliases set":
        run(verb, *right, "and", "more", "words", "than", "it", "takes")
    if right:
        run(verb)


class Stranger(BaseHTTPRequestHandler):
    """Answers everything in one way."""

    status, kind, body = 200, "text/html", b"<html>hello</html>"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        return


REFUSED = {
    "message": "A valid key for the admin plane is needed. Send it.",
    "type": "x",
    "param": None,
    "code": "invalid_api_key",
}
STRANGERS = {
    "a page": (200, "text/html", b"<html>hello</html>"),
    "nothing": (204, "text/plain", b""),
    "a list": (200, "application/json", b"[1, 2]"),
    "another object": (200, "application/json", b'{"data": 3, "job": [], "findings": 1}'),
    "no object": (200, "application/json", b"{}"),
    "half an object": (200, "application/json", b'{"data": [{"versions": 3'),
    "another error": (500, "application/json", b'{"error": "boom"}'),
    "a redirect": (307, "text/plain", b""),
    "a gateway": (502, "text/html", b"<html>bad gateway</html>"),
    "a wrong key": (401, "application/json", json.dumps({"error": REFUSED}).encode()),
    "markup": (
        400,
        "application/json",
        json.dumps({"error": REFUSED | {"message": "[/red] is [bold]bad. Mend it."}}).encode(),
    ),
    "events that are none": (200, "text/event-stream", b"data: nothing\n\n"),
    "events of another kind": (200, "text/event-stream", b"data: {}\n\ndata: nothing\n\n"),
}


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("verb", ONLINE)
def test_servers_that_are_not_there_or_not_ours(
    verb: Any, places: Any, tmp_path: Path, stranger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = filled(verb, places, tmp_path / "new")
    for url in (
        NOBODY,
        "nonsense",
        "http://",
        "http://[::1",
        "ftp://127.0.0.1",
        "http://127.0.0.1:99999",
        "",
        "http://\udcff",
    ):
        run(verb, *right, "--url", url)
    for key in ("schlüssel", "two words", "line\nbreak", "\udcff"):
        run(verb, *right, "--url", stranger, "--key", key)
    for name, (status, kind, body) in STRANGERS.items():
        for attribute, value in (("status", status), ("kind", kind), ("body", body)):
            monkeypatch.setattr(Stranger, attribute, value)
        told = run(verb, *right, "--url", stranger, "--key", "ak_x")
        if name == "a wrong key":
            assert told.startswith("invalid_api_key: "), told
    assert not (tmp_path / "new").exists()


def noted(handler: BaseHTTPRequestHandler, seen: list[str], *rest: Any) -> None:
    seen.append(handler.path)
    BaseHTTPRequestHandler.send_response(handler, *rest)


def test_names_that_are_none_reach_no_other_route(places: Any, stranger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("adapters show", "adapters rm", "aliases show", "aliases rm", "jobs show", "jobs cancel"):
        for name in ("../engine", "a/b", "a?b", "a#b", "", "\udcff", "a%2fb"):
            seen: list[str] = []
            monkeypatch.setattr(Stranger, "send_response", partialmethod(noted, seen))
            run(verb, "--url", stranger, "--", name)
            assert all(path.split("?")[0].count("/") <= 4 for path in seen), seen


WRONG_OPTIONS = ("seed=x", "rank=0", "rank=99999", "rank=x", "dtype=int8", "energy=2", "min_energy=x", "norm_balance=5")
RECIPES: dict[str, Any] = {
    "a_list": [], "a_text": "ties", "a_weight": {"inputs": [{"adapter": "./a", "weight": "x"}]},
    "a_number": {"inputs": [5]}, "a_rank": {"inputs": [{"adapter": "./a"}], "output": {"rank": {"energy": "x"}}},
    "an_output": {"inputs": [{"adapter": "./a"}], "output": 5}, "unknown": {"inputs": [{"adapter": "./a"}], "x": 1},
    "mergekits": {"merge_method": "ties", "models": []},
}  # fmt: skip


@pytest.mark.parametrize("arguments", [
    ("demo", "train", "nonsense"),
    ("demo", "train", "sql", "--steps", "0"),
    ("demo", "train", "sql", "--base", "/missing", "--out", "{new}"),
    ("demo", "score", "nonsense"),
    ("demo", "score", "sql", "--url", NOBODY),
    ("demo", "score", "sql", "--url", "nonsense"),
    ("demo", "score", "sql", "--split", "nonsense"),
    ("serve", "--port", "x"),
    ("serve", "--port", "70000"),
    ("merge", "build", "{good} + nothing", "-o", "{new}"),
    ("merge", "build", "{file}", "-o", "{new}"),
    ("merge", "build", "missing.json", "-o", "{new}"),
    ("merge", "build", "{good}", "-o", "{new}", "--rank", "0"),
    ("merge", "build", "{good}", "-o", "{file}"),
    *(("merge", "build", f"ties({{good}}, {{text}}; {option})", "-o", "{new}") for option in WRONG_OPTIONS),
    *(("merge", "build", f"{name}.json", "-o", "{new}") for name in RECIPES),
    ("merge", "build", "{good}", "-o", "{new}/x.gguf", "--base", "{empty}"),
    ("merge", "report", "{good}/adapter_model.safetensors"),
    ("merges", "create", "c", "missing.json"),
    ("merges", "create", "c", "{file}.json"),
    ("nonsense",),
    ("adapters", "nonsense"),
])  # fmt: skip
def test_others(arguments: Any, places: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (places["file"].with_name("file.json")).write_bytes(b'{"inputs": [{"adapter": "\xff"}]}')
    recipes = [tmp_path / f"{name}.json" for name in RECIPES]
    for path in recipes:
        path.write_text(json.dumps(RECIPES[path.stem]))
    (first, *rest) = [text.format(**places, new=tmp_path / "new") for text in arguments]
    run(first, *rest)
    assert sorted(tmp_path.iterdir()) == sorted(recipes)


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_the_version_is_printed_either_way(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize("words", [["-h"], ["merge", "-h"], ["merge", "build", "-h"], ["adapters", "push", "--help"]])
def test_help_is_shown_either_way(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "Usage:" in done.stdout


def test_settings_that_are_none(places: Any, tmp_path: Path) -> None:
    told = run("merge build", str(places["good"]), "-o", str(tmp_path / "x"), AMALGAM_MAX_DELTA_RATIO="much")
    assert "AMALGAM_MAX_DELTA_RATIO" in told
