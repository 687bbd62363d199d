"""Fetches adapters from where a request says they are, into a staging folder. One table row a scheme."""

import os
import re
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote

from amalgam.errors.adapters import PathDenied, SourceNotFound, UnsupportedSource
from amalgam.store.disk import disk_errors
from amalgam.store.file_rules import ignored
from amalgam.store.staging import Staging

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]{0,15})://(.*)", re.DOTALL)
_HIDDEN: Final = re.compile(r"%(?:2e|2f|5c|25|7f|[01][0-9a-f])", re.IGNORECASE)
"""Encoded: dot, slash, backslash, percent sign, control characters."""
_LONGEST_SOURCE: Final = 4096
_CHUNK_BYTES: Final = 1 << 20
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Source(Protocol):
    """Reads adapters of one scheme."""

    def fetch(self, location: str, staging: Staging) -> None:
        """Bring the files at ``location`` (what follows ``scheme://``) into ``staging``; blocks."""


class Sources:
    """The schemes that this server reads."""

    def __init__(self, schemes: Mapping[str, Source]) -> None:
        self._schemes = dict(schemes)

    def fetch(self, source: str, staging: Staging) -> str:
        """Bring the adapter that ``source`` names into ``staging``; blocks.

        Returns: the scheme.

        Raises:
            UnsupportedSource: not one of the schemes.
            PathDenied: outside what is configured.
            SourceNotFound: nothing there.
            UploadTooLarge, StoreUnavailable: see `Staging.receive`.
        """
        found = _SCHEME.fullmatch(source[:_LONGEST_SOURCE])
        scheme = found[1] if found else source.partition(":")[0][:16]
        if found is None or scheme not in self._schemes:
            raise UnsupportedSource(scheme, tuple(self._schemes))
        if len(source) > _LONGEST_SOURCE:
            raise PathDenied(f"it is longer than {_LONGEST_SOURCE} characters")
        self._schemes[scheme].fetch(found[2], staging)
        return scheme


def sources(roots: Sequence[Path], hub: Source | None = None) -> Sources:
    """The table of schemes.

    Args:
        roots: Folders that ``file://`` may name and read below; none where empty.
        hub: Reads ``hf://``; None where this server asks no hub.
    """
    table: dict[str, Source] = {"file": FileSource(roots)}
    if hub is not None:
        table["hf"] = hub
    return Sources(table)


class FileSource:
    """Folders of this machine, below configured roots only, reached without following a single link.

    The folder is opened part by part from the root's own descriptor, so what was checked is what is read, whoever
    renames things meanwhile.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [(Path(os.path.abspath(root)), Path(os.path.realpath(root))) for root in roots]

    def fetch(self, location: str, staging: Staging) -> None:
        """Copy the adapter folder ``location``, ``/absolute/path`` as in ``file:///absolute/path``.

        Raises:
            PathDenied: outside the roots, or reached or filled by links.
            SourceNotFound: no such folder.
        """
        root, parts = self._confine(_parse(location))
        with ExitStack() as stack:
            descriptor = _open_folder(root, parts, stack)
            for name in sorted(os.listdir(descriptor)):
                _copy(descriptor, name, staging)

    def _confine(self, parts: Sequence[str]) -> tuple[Path, Sequence[str]]:
        """The real root that the path lies below, and the parts from there on."""
        for configured, real in self._roots:
            for root in (configured, real):
                below = root.parts[1:]
                if tuple(parts[: len(below)]) == below:
                    return real, parts[len(below) :]
        raise PathDenied("it is not below a configured root")


def _parse(location: str) -> list[str]:
    """The parts of an absolute path, none of which could mean another place to anyone who reads it.

    Raises:
        PathDenied: anything but plain names between slashes.
    """
    if _HIDDEN.search(location):
        raise PathDenied("it has encoded dots, separators or control characters")
    try:
        host, slash, path = unquote(location, errors="strict").partition("/")
    except UnicodeDecodeError:
        raise PathDenied("it is not UTF-8") from None
    if not slash or host not in ("", "localhost"):
        raise PathDenied("it is not of the form file:///absolute/path")
    parts = path.removesuffix("/").split("/")
    for part in parts:
        _check_part(part)
    return parts


def _check_part(part: str) -> None:
    if part in ("", ".", ".."):
        raise PathDenied("it has empty or dotted parts")
    if not part.isprintable() or "\\" in part:
        raise PathDenied("it has characters that no adapter folder needs")
    # Fullwidth and leader dots and slashes turn into the plain ones wherever names are normalised.
    folded = unicodedata.normalize("NFKC", part)
    if folded.count(".") != part.count(".") or "/" in folded or "\\" in folded or folded in (".", ".."):
        raise PathDenied("it has look-alikes of dots or slashes")


def _open_folder(root: Path, parts: Sequence[str], stack: ExitStack) -> int:
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        for part in parts:
            _refuse_link(descriptor, part)
            descriptor = os.open(part, _FOLDER_FLAGS, dir_fd=descriptor)
            stack.callback(os.close, descriptor)
    except OSError as error:
        raise SourceNotFound from error
    return descriptor


def _refuse_link(folder: int, name: str) -> None:
    if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise PathDenied("it is reached by a symbolic link, or holds one")


def _copy(folder: int, name: str, staging: Staging) -> None:
    """Hand one entry of the open folder to ``staging``; subfolders are left out."""
    with disk_errors():
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            staging.note(ignored(name))
            return
        _refuse_link(folder, name)
        descriptor = os.open(name, _FILE_FLAGS, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PathDenied("it holds something that is no regular file")
            staging.receive(name, iter(lambda: file.read(_CHUNK_BYTES), b""))
