"""Fetches adapters from where a request says they are, into a staging folder. One table row a scheme."""

import os
import re
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote

from amalgam.errors.adapters import PathDenied, SourceNotFound, UnsupportedSource
from amalgam.store.disk import disk_errors
from amalgam.store.file_rules import is_brought
from amalgam.store.staging import Staging

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]{0,15})://(.*)", re.DOTALL)
_HIDDEN: Final = re.compile(r"%(?:2e|2f|5c|25|7f|[01][0-9a-f])", re.IGNORECASE)
"""It matches what is encoded: dot, slash, backslash, percent sign, control characters."""
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


def sources(
    roots: Sequence[Path], hub: Source | None = None, object_stores: Mapping[str, Source] | None = None
) -> Sources:
    """The table of schemes.

    Args:
        roots: Folders that ``file://`` may name and read below; none where empty.
        hub: Reads ``hf://``; None where this server asks no hub.
        object_stores: what reads each scheme of object stores that has a configured prefix.
    """
    table: dict[str, Source] = {"file": FileSource(roots)}
    if hub is not None:
        table["hf"] = hub
    return Sources(table | dict(object_stores or {}))


class FileSource:
    """Folders of this machine, below configured roots only. A link that stays below its root is followed once.

    Hub caches are made of such links (``snapshots/…/adapter_model.safetensors`` to ``../../blobs/…``). Folders are
    opened part by part from the root's own descriptor and never through a link: where one is met, its target is walked
    anew from the root, so what was checked is what is read, whoever renames things meanwhile.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [(Path(os.path.abspath(root)), Path(os.path.realpath(root))) for root in roots]

    def fetch(self, location: str, staging: Staging) -> None:
        """Copy the adapter folder ``location``, ``/absolute/path`` as in ``file:///absolute/path``.

        Raises:
            PathDenied: outside the roots, or reached or filled by links that lead out, or to other links.
            SourceNotFound: no such folder.
        """
        roots, parts = self._confine(_parse(location))
        with ExitStack() as stack:
            folder = _Folder.open(roots, parts, stack)
            for name in sorted(os.listdir(folder.descriptor)):
                _copy(folder, name, staging)

    def _confine(self, parts: Sequence[str]) -> tuple[tuple[Path, Path], Sequence[str]]:
        """The root that the path lies below, as configured and as it is, and the parts from there on."""
        for roots in self._roots:
            below = _below(roots, parts)
            if below is not None:
                return roots, below
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


def _below(roots: tuple[Path, Path], parts: Sequence[str]) -> Sequence[str] | None:
    """The parts of an absolute path from either spelling of the root on; None where it is not below."""
    for root in roots:
        above = root.parts[1:]
        if tuple(parts[: len(above)]) == above:
            return parts[len(above) :]
    return None


@dataclass(frozen=True, slots=True)
class _Folder:
    """An open folder below a root, reached without a link."""

    roots: tuple[Path, Path]
    """The first is as configured, the second as it is."""
    parts: tuple[str, ...]
    """They lead from the root on; none of them is a link."""
    descriptor: int
    stack: ExitStack

    @classmethod
    def open(cls, roots: tuple[Path, Path], parts: Sequence[str], stack: ExitStack) -> "_Folder":
        """Walk to ``parts``; every link on the way is followed once.

        Raises:
            PathDenied: a link that leads out of the root, or to another link.
            SourceNotFound: nothing there.
        """
        try:
            descriptor = os.open(roots[1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            folder = cls(roots, (), descriptor, stack)
            for part in parts:
                folder = folder.linked(part) if is_link(folder.descriptor, part) else folder.inner(part)
        except OSError as error:
            raise SourceNotFound from error
        return folder

    def inner(self, part: str) -> "_Folder":
        """The folder ``part`` inside, which is no link. Raises OSError."""
        descriptor = os.open(part, _FOLDER_FLAGS, dir_fd=self.descriptor)
        self.stack.callback(os.close, descriptor)
        return _Folder(self.roots, (*self.parts, part), descriptor, self.stack)

    def linked(self, name: str) -> "_Folder":
        """The folder that the link ``name`` leads to. Raises PathDenied, OSError."""
        return self._walked(self.target(name))

    def holder(self, name: str) -> tuple["_Folder", str]:
        """The folder that holds the file ``name``, and its name there: this one, or where the link leads.

        Raises:
            PathDenied: as for `linked`. OSError.
        """
        if not is_link(self.descriptor, name):
            return self, name
        *above, last = self.target(name)
        folder = self._walked(above)
        _refuse_link(folder.descriptor, last)
        return folder, last

    def target(self, name: str) -> Sequence[str]:
        """The parts, from the root on, of what the link ``name`` leads to.

        Raises:
            PathDenied: it leads out of the root.
        """
        text = os.readlink(name, dir_fd=self.descriptor)
        walked, ahead = list(self.parts), text.split("/")
        if text.startswith("/"):
            walked, below = [], _below(self.roots, [part for part in ahead if part])
            ahead = [".."] if below is None else list(below)
        for part in ahead:
            if part == ".." and not walked:
                raise PathDenied("a symbolic link in it leads out of the root")
            if part == "..":
                walked.pop()
            elif part not in ("", "."):
                walked.append(part)
        if not walked:
            raise PathDenied("a symbolic link in it leads to the root itself")
        return walked

    def _walked(self, parts: Sequence[str]) -> "_Folder":
        descriptor = os.open(self.roots[1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.stack.callback(os.close, descriptor)
        folder = _Folder(self.roots, (), descriptor, self.stack)
        for part in parts:
            _refuse_link(folder.descriptor, part)
            folder = folder.inner(part)
        return folder


def is_link(folder: int, name: str) -> bool:
    """Whether ``name`` in the open folder is a symbolic link."""
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _refuse_link(folder: int, name: str) -> None:
    if is_link(folder, name):
        raise PathDenied("a symbolic link in it leads to another one; one is followed, no chains")


def _copy(folder: _Folder, name: str, staging: Staging) -> None:
    """Pass one entry of the open folder to ``staging``, unopened where it is no part of an adapter."""
    with disk_errors():
        mode = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) or not is_brought(name):
            staging.leave_out(name + "/" if stat.S_ISDIR(mode) else name)
            return
        try:
            holder, real = folder.holder(name)
            descriptor = os.open(real, _FILE_FLAGS, dir_fd=holder.descriptor)
        except FileNotFoundError:
            # A link to nothing, as a cache has them whose files were pruned.
            raise SourceNotFound from None
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PathDenied("it holds something that is no regular file")
            staging.receive(name, iter(lambda: file.read(_CHUNK_BYTES), b""))
