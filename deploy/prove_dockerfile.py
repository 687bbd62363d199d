"""Carries out a Dockerfile's steps without Docker: in clean Debian roots, stage by stage, then starts what was built.

    python deploy/prove_dockerfile.py --target cpu --root FOLDER [--env NAME=VALUE …] [--bind FOLDER[:PLACE] …]

RUN runs in a chroot with the stage's ENV, WORKDIR and USER; COPY copies from this checkout (by .dockerignore) or from
another stage. At the end the server is started as the image's user in a network of its own, the HEALTHCHECK has to
succeed, the demo model and a demo adapter have to answer, and SIGTERM has to end it with status 0. Needs root and
debootstrap; ``--env`` and ``--bind`` pass this machine's pip configuration to RUN. All mounts live in a namespace that
ends with the run; the folder is removed afterwards unless ``--keep`` is given.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_steps import (
    BASE_ENVIRONMENT,
    Stage,
    Step,
    allowed,
    assignments,
    exec_form,
    health_command,
    order_for,
    read_stages,
)

CHECKOUT = Path(__file__).resolve().parent.parent
READY_LIMIT_S = 600
KEYS = {"AMALGAM_ADMIN_KEY": "proof-admin", "AMALGAM_API_KEYS": "proof-client"}
QUESTION = """
import json, urllib.request as r
headers = {"Content-Type": "application/json", "Authorization": "Bearer proof-client"}
def ask(path, body=None):
    data = json.dumps(body).encode() if body else None
    return json.load(r.urlopen(r.Request("http://127.0.0.1:8000/v1/" + path, data, headers), timeout=120))
names = [model["id"] for model in ask("models")["data"]]
question = [{"role": "user", "content": "What is the capital of France?"}]
for model, served in (("smollm2", "smollm2"), ("sql", "sql@1")):
    answer = ask("chat/completions", {"model": model, "messages": question, "max_tokens": 16, "temperature": 0})
    print(names, answer["model"], answer["choices"][0]["message"]["content"])
    assert answer["model"] == served
    assert served != "smollm2" or "Paris" in answer["choices"][0]["message"]["content"]
"""


@dataclass
class Image:
    """A stage that is being carried out: its root and its settings."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(BASE_ENVIRONMENT))
    folder: str = "/"
    user: str = "0:0"
    health: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def words(self, command: list[str], environment: dict[str, str]) -> list[str]:
        """``command`` inside the root, as the image's user, in its folder."""
        variables = [f"{name}={value}" for name, value in (self.environment | environment).items()]
        inside = ["/bin/sh", "-c", f'cd {self.folder} && exec "$@"', "sh", *command]
        return ["chroot", f"--userspec={self.user}", "--groups=", str(self.root), "/usr/bin/env", "-i", *variables,
                *inside]  # fmt: skip


class Proof:
    """One run over one target."""

    def __init__(self, root: Path, environment: dict[str, str], binds: list[tuple[Path, str]]) -> None:
        self._root = root
        self._given = environment
        self._binds = binds
        self._images: dict[str, Image] = {}
        self._ignore = (CHECKOUT / ".dockerignore").read_text()

    def stage(self, stage: Stage) -> Image:
        """Carry out one stage."""
        root = self._root / stage.name
        if stage.base in self._images:
            before = self._images[stage.base]
            call(["cp", "-a", "--one-file-system", "--reflink=auto", str(before.root), str(root)])
            image = Image(root, dict(before.environment), before.folder, before.user)
        else:
            self._debian(stage.base, root)
            image = Image(root)
        self._mount(root)
        self._images[stage.name] = image
        for step in stage.steps:
            self._step(image, step)
        return image

    def _debian(self, base: str, root: Path) -> None:
        found = re.fullmatch(r"debian:(\w+)-slim", base)
        if found is None:
            raise SystemExit(f"FROM {base}: only debian:<release>-slim can be made here")
        say(f"debootstrap {found[1]}")
        call(["debootstrap", "--variant=minbase", found[1], str(root)], quiet=True)

    def _mount(self, root: Path) -> None:
        shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
        call(["mount", "-t", "proc", "proc", str(root / "proc")])
        for folder in ("dev", "sys"):
            call(["mount", "--rbind", f"/{folder}", str(root / folder)])

    @contextmanager
    def _bound(self, root: Path) -> Iterator[None]:
        """The given folders and files in their places, for one RUN: a later stage must not copy them."""
        places = [root / place.lstrip("/") for _, place in self._binds]
        for (source, _), place in zip(self._binds, places, strict=True):
            (place if source.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
            if not source.is_dir():
                place.touch()
            call(["mount", "--bind", "-o", "ro", str(source), str(place)])
        try:
            yield
        finally:
            for place in places:
                call(["umount", str(place)])

    def _step(self, image: Image, step: Step) -> None:
        keyword, value = step.keyword, step.value
        if keyword == "RUN":
            say(f"RUN {value}")
            began = time.monotonic()
            with self._bound(image.root):
                call(image.words(["/bin/sh", "-c", value], self._given))
            say(f"    {time.monotonic() - began:.0f} s")
        elif keyword == "COPY":
            self._copy(image, value)
        elif keyword == "ENV":
            image.environment |= assignments(value, image.environment)
        elif keyword == "WORKDIR":
            image.folder = value
            (image.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif keyword == "USER":
            image.user = value
        elif keyword == "HEALTHCHECK":
            image.health = health_command(value)
        elif keyword == "ENTRYPOINT":
            image.entrypoint = exec_form(value)
        elif keyword == "CMD":
            image.command = exec_form(value)

    def _copy(self, image: Image, value: str) -> None:
        say(f"COPY {value}")
        *sources, place = [word for word in value.split() if not word.startswith("--")]
        other = re.search(r"--from=(\S+)", value)
        target = image.root / os.path.join(image.folder, place).lstrip("/")
        for source in sources:
            if other is None and not allowed(source, self._ignore):
                raise SystemExit(f"COPY {source}: .dockerignore keeps it out")
            path = self._images[other[1]].root / source.lstrip("/") if other else CHECKOUT / source
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                call(["cp", "-a", "--reflink=auto", f"{path}/.", str(target)])
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        if other is None:
            call(["chown", "-R", "0:0", str(target)])


def start_and_ask(image: Image) -> None:
    """Start the image, wait for its health check, ask one question, and stop it."""
    say("starting " + " ".join([*image.entrypoint, *image.command]))
    inside = image.words([*image.entrypoint, *image.command], KEYS)
    network = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    began = time.monotonic()
    server = subprocess.Popen([*network, *inside])
    enter = ["nsenter", f"--net=/proc/{server.pid}/ns/net"]
    try:
        time.sleep(1)
        while subprocess.run([*enter, *image.words(image.health, {})], stderr=subprocess.DEVNULL).returncode != 0:
            if server.poll() is not None or time.monotonic() - began > READY_LIMIT_S:
                raise SystemExit("the health check did not succeed")
            time.sleep(2)
        say(f"healthy after {time.monotonic() - began:.0f} s")
        call([*enter, *image.words(["python", "-c", QUESTION], {})])
        server.send_signal(signal.SIGTERM)
        if server.wait(60) != 0:
            raise SystemExit(f"the server ended with {server.returncode} after SIGTERM")
        say("ended with 0 after SIGTERM")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def call(command: list[str], *, quiet: bool = False) -> None:
    """Run ``command``; its failure is the end."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL if quiet else None)
    if done.returncode != 0:
        raise SystemExit(f"status {done.returncode}: {' '.join(command)[:400]}")


def say(text: str) -> None:
    """One line of report."""
    print(f"== {text}", flush=True)


def main() -> None:
    """Parse, run again in mounts of its own, and clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--root", type=Path, required=True, help="folder to make; about 10 GB")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for RUN steps only")
    parser.add_argument(
        "--bind", action="append", default=[], metavar="FOLDER[:PLACE]", help="read-only, in every root"
    )
    parser.add_argument("--keep", action="store_true", help="leave the roots behind")
    parser.add_argument("--own-mounts", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.own_mounts:
        prove(given)
        return
    given.root.mkdir(parents=True)
    again = [sys.executable, __file__, *sys.argv[1:], "--own-mounts"]
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", *again])
    if not given.keep:
        # Outside the namespace nothing is mounted below the folder, so only files of its own are removed.
        subprocess.run(["rm", "-rf", "--one-file-system", str(given.root)], check=True)
    raise SystemExit(done.returncode)


def prove(given: argparse.Namespace) -> None:
    """Carry the steps out and start the result."""
    environment = dict(pair.split("=", 1) for pair in given.env)
    binds = [(Path(source), place or source) for source, _, place in (bind.partition(":") for bind in given.bind)]
    proof = Proof(given.root.resolve(), environment, binds)
    for stage in order_for(read_stages(CHECKOUT / "Dockerfile"), given.target):
        image = proof.stage(stage)
    start_and_ask(image)
    say(f"target {given.target}: every step ran, the server answered")


if __name__ == "__main__":
    main()
