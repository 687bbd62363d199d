"""A PostgreSQL of the test's own, to be stopped, frozen and killed; skipped with a reason where none can be started."""

import getpass
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

_START_LIMIT_S = 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    return folders[-1] if folders else None


def _unprivileged() -> pwd.struct_passwd | None:
    """The user it runs as where this process is root; None: as this one."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL cannot run as root, and there is no user postgres")


def _let_in(folder: Path) -> None:
    """Open what lies above ``folder``; at each start of a process, since every session of pytest shuts it again."""
    for parent in folder.parents:
        if parent == Path(tempfile.gettempdir()):
            break
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(0o755)


@dataclass
class Cluster:
    """One database server on loopback."""

    programs: Path
    data: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        return f"postgresql://amalgam@127.0.0.1:{port}/postgres"

    def _run(self, *command: str) -> "subprocess.Popen[bytes]":
        user = _unprivileged()
        if user is not None:
            _let_in(self.data.parent)
        who = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        log = (self.data.parent / "log").open("ab")
        with log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True, **who)  # type: ignore[call-overload, no-any-return]

    def create(self) -> None:
        self.data.parent.mkdir(parents=True, exist_ok=True)
        user = _unprivileged()
        if user is not None:
            os.chown(self.data.parent, user.pw_uid, user.pw_gid)
        made = self._run(
            str(self.programs / "initdb"), "-D", str(self.data), "-U", "amalgam", "-A", "trust", "--no-sync"
        )
        assert made.wait(120) == 0, (self.data.parent / "log").read_text()

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self.process = self._run(str(self.programs / "postgres"), "-D", str(self.data), *settings)
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with psycopg.connect(self.url, connect_timeout=5):
                    return
            except psycopg.OperationalError:
                time.sleep(0.05)
        pytest.fail((self.data.parent / "log").read_text())

    def _everyone(self) -> list[int]:
        """The server and its children, which lead sessions of their own."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def freeze(self) -> None:
        """Connections stay, and nothing is said over them any more."""
        for pid in self._everyone():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._everyone():
            os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """At once, connections included."""
        if self.process is not None and self.process.poll() is None:
            self.thaw()
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(60)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Make and start one below ``folder``, which another user is let into where PostgreSQL runs as one."""
    programs = _programs()
    if programs is None:
        pytest.skip(f"no PostgreSQL is installed for {getpass.getuser()}")
    made = Cluster(programs, folder / "data")
    made.create()
    made.start()
    try:
        yield made
    finally:
        made.stop()
