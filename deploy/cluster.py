"""A whole cluster on this machine, to try it: PostgreSQL, an S3 server, Ray with engines, fronts and a merge worker.

    make cluster                            two engines on the demo model, two fronts, from port 8000 on
    make cluster ARGS='MODEL --engines 3 --fronts 3 --port 9000'

Everything listens on loopback and lies in a temporary folder. Ctrl-C ends what was started, in reverse, and removes it.
"""

import argparse
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = "127.0.0.1"
BUCKET: Final = "amalgam"
START_S: Final = 900.0
"""Longest wait for engines: the demo model may have to be converted first."""
END_S: Final = 60.0


@dataclass(frozen=True)
class Program:
    """Something that was started."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def require_alive(self) -> None:
        """Raise SystemExit with the end of its log where it ended."""
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()[-15:]
            raise SystemExit("\n".join([f"{self.name} ended with {self.process.returncode}:", *lines]))


@contextmanager
def running(
    name: str, folder: Path, command: Sequence[str], environment: Mapping[str, str], user: str | None = None
) -> Iterator[Program]:
    """Run ``command`` while the block does, in a session of its own, so that Ctrl-C reaches this program alone."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=dict(environment), cwd="/",
            start_new_session=True, user=user,
        )  # fmt: skip
    try:
        yield Program(name, process, log)
    finally:
        _end(process, signal.SIGINT if name == "postgres" else signal.SIGTERM)


def _end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """One that nobody has now."""
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


def is_answered(url: str) -> bool:
    """Whether a GET of ``url`` is 200, or refused by whoever answers there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def until_answered(program: Program, url: str, longest_s: float = START_S) -> None:
    """Wait until ``url`` is answered; SystemExit where the program ends first, or it takes too long."""
    deadline = time.monotonic() + longest_s
    while not is_answered(url):
        program.require_alive()
        if time.monotonic() > deadline:
            raise SystemExit(f"{program.name} does not answer after {longest_s:g} s; its log is {program.log}.")
        time.sleep(0.2)


def start_postgres(stack: ExitStack, folder: Path) -> str:
    """A database of its own; its URL."""
    found = shutil.which("initdb") or next((str(one) for one in Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        raise SystemExit("No PostgreSQL is installed: initdb is neither on the PATH nor in /usr/lib/postgresql.")
    programs, port, home = Path(found).resolve().parent, free_port(), folder / "postgres"
    home.mkdir()
    # PostgreSQL refuses to run as root; its own user comes with the package.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        folder.chmod(0o711)
        shutil.chown(home, pwd.getpwnam(user).pw_uid)
    data = home / "data"
    made = [str(programs / "initdb"), "-D", str(data), "-U", "amalgam", "-A", "trust", "--no-sync"]
    subprocess.run(made, check=True, capture_output=True, cwd="/", user=user)
    options = {"listen_addresses": HERE, "port": port, "unix_socket_directories": "", "fsync": "off"}
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    command = [str(programs / "postgres"), "-D", str(data), *settings]
    program = stack.enter_context(running("postgres", folder, command, os.environ, user))
    deadline = time.monotonic() + 60
    while subprocess.run([str(programs / "pg_isready"), "-q", "-h", HERE, "-p", str(port)], check=False).returncode:
        program.require_alive()
        if time.monotonic() > deadline:
            raise SystemExit(f"PostgreSQL does not answer; its log is {program.log}.")
        time.sleep(0.1)
    return f"postgresql://amalgam@{HERE}:{port}/postgres"


def start_object_store(stack: ExitStack, folder: Path) -> str:
    """A server that speaks S3, with an empty bucket; its address. What it is given is in its memory only."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", HERE, "-p", str(port)]
    program = stack.enter_context(running("object-store", folder, command, os.environ))
    address = f"http://{HERE}:{port}"
    until_answered(program, f"{address}/moto-api/", 60)
    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=30).close()
    return address


def amalgam(*words: str) -> list[str]:
    """The program of this environment."""
    return [sys.executable, "-m", "amalgam", *words]


@dataclass(frozen=True)
class Started:
    """What runs, and where it answers."""

    programs: Sequence[Program]
    urls: Sequence[str]
    ray: str
    store: Mapping[str, str]
    """Variables by which other programs find the same store."""


def start(stack: ExitStack, folder: Path, given: argparse.Namespace) -> Started:
    """Everything, in order."""
    say("PostgreSQL and an S3 server …")
    database, objects = start_postgres(stack, folder), start_object_store(stack, folder)
    store = {
        "AMALGAM_STORE": f"s3://{BUCKET}/team",
        "AMALGAM_OBJECT_ENDPOINT": objects,
        "AMALGAM_RAY_TOKEN_FILE": str(folder / "ray_token"),
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": "us-east-1",
    }
    environment = _without_ours(os.environ) | store
    of_servers = environment | {"AMALGAM_DATABASE_URL": database}
    model, port = ([] if given.model is None else [given.model]), free_port()
    ray = f"ray://{HERE}:{port}"
    say(f"{given.engines} engines on Ray; this takes a minute or more …")
    command = amalgam("engine", *model, "--replicas", str(given.engines), "--port", str(port))
    engines = stack.enter_context(running("engines", folder, command, environment))
    until_said(engines, "Ready")
    say(f"{given.fronts} fronts and a merge worker …")
    urls = [f"http://{HERE}:{given.port + number}" for number in range(given.fronts)]
    fronts = []
    for url in urls:
        port_of = url.rpartition(":")[2]
        command = amalgam("serve", *model, "--engine", ray, "--port", port_of)
        fronts.append(stack.enter_context(running(f"front-{port_of}", folder, command, of_servers)))
    for program, url in zip(fronts, urls, strict=True):
        until_answered(program, f"{url}/readyz")
    of_worker = of_servers | {"AMALGAM_BASE_MODEL": base_folder(given.model)}
    worker = stack.enter_context(running("worker", folder, amalgam("worker"), of_worker))
    return Started([engines, *fronts, worker], urls, ray, store | {"AMALGAM_DATABASE_URL": database})


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings of another server are not this cluster's, but for the folder of the converted demo model."""
    ours = ("AMALGAM_", "AWS_", "RAY_")
    kept = {name: value for name, value in environment.items() if not name.startswith(ours)}
    return kept | {name: value for name, value in environment.items() if name == "AMALGAM_CACHE_DIR"}


def base_folder(model: str | None) -> str:
    """As the servers find it."""
    from amalgam.cli.front import base_folder as found
    from amalgam.settings import Settings

    return str(found(Settings(), model))


def until_said(program: Program, word: str) -> None:
    """Wait until its log has ``word``."""
    deadline = time.monotonic() + START_S
    while word not in program.log.read_text(errors="replace"):
        program.require_alive()
        if time.monotonic() > deadline:
            raise SystemExit(f"{program.name} is not ready after {START_S:g} s; its log is {program.log}.")
        time.sleep(0.2)


def lines_to_paste(started: Started, model: str | None) -> Iterator[str]:
    """What to try first."""
    header = "-H 'content-type: application/json'"
    first, last = started.urls[0], started.urls[-1]
    if model is None:
        yield "An adapter by one front, and a blend of two by the other:"
        for url, name in ((first, "sql"), (last, "0.6*sql + 0.4*json")):
            chat = json.dumps({"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16})
            yield f"  curl {url}/v1/chat/completions {header} -d '{chat}'"
    yield "What there is, and what every engine counts:"
    yield f"  curl {first}/v1/models"
    yield f"  curl {last}/metrics"
    yield "A third front:"
    yield f"  env {' '.join(f'{name}={value}' for name, value in started.store.items())} \\"
    words = " ".join(["amalgam", "serve", *([] if model is None else [model]), "--engine", started.ray])
    yield f"    {words} --port {int(last.rpartition(':')[2]) + 1}"


def say(line: str) -> None:
    """A line on the terminal, at once."""
    print(line, flush=True)


def main(words: Sequence[str]) -> None:
    """Start all of it, and wait for Ctrl-C, or for the end of any part."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", nargs="?", help="folder or hub id of the base model; without it: the demo model")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--fronts", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000, help="of the first front; the others have the next ones")
    given = parser.parse_args(words)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _over)
    with tempfile.TemporaryDirectory(prefix="amalgam-cluster-") as name, ExitStack() as stack:
        started = start(stack, Path(name), given)
        for line in lines_to_paste(started, given.model):
            say(line)
        say(f"Logs are in {name}. Ctrl-C ends all of it.")
        try:
            while True:
                for program in started.programs:
                    program.require_alive()
                time.sleep(1)
        finally:
            say("Ending fronts, engines and stores …")


def _over(number: int, frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
