"""Adapters from object stores: ``s3://bucket/…``, ``gs://bucket/…``, ``az://account/container/…``, through obstore.

Credentials are what obstore finds where each cloud's own tools look: environment variables (``AWS_…``, ``GOOGLE_…``,
``AZURE_…``), or the machine's role. Only what lies below a configured prefix is ever asked for.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, get_args

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore, from_url

from amalgam.errors.adapters import ObjectsDenied, SourceNotFound, SourceUnavailable, UploadTooLarge
from amalgam.store.file_rules import listing
from amalgam.store.staging import Staging

if TYPE_CHECKING:
    from obstore.store import S3Config

Scheme = Literal["s3", "gs", "az"]
SCHEMES: Final[tuple[Scheme, ...]] = get_args(Scheme)
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@,-]{0,254}")
"""It matches what every store takes in a key as it is written; dots alone and encodings are none of it."""
MOST_LISTED: Final = 1000
"""At most so many objects are below an adapter's own address: training leaves some dozens."""
_CHUNK_BYTES: Final = 1 << 20
_CONNECT_S: Final = 5
_SILENT_S: Final = 30
RETRY_S: Final = 20
"""A store that does not answer is asked again for so long."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """An address in an object store below which adapters may be fetched.

    Attributes:
        scheme: of the store.
        parts: between slashes; never empty.
    """

    scheme: Scheme
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Prefix":
        """Parse it as the settings have it, such as ``s3://models/adapters``."""
        scheme, _, location = text.partition("://")
        [known] = [known for known in SCHEMES if known == scheme]
        return cls(known, tuple(location.removesuffix("/").split("/")))

    def holds(self, parts: Sequence[str]) -> bool:
        """Whether an address lies below, or is the prefix itself."""
        return tuple(parts[: len(self.parts)]) == self.parts


def _parts(location: str) -> tuple[str, ...] | None:
    """The parts of an address; None where one of them is anything but a plain name."""
    parts = tuple(location.removesuffix("/").split("/"))
    return parts if all(_PART.fullmatch(part) for part in parts) else None


class ObjectSource:
    """Fetches an adapter's own files from one kind of object store, below configured prefixes only.

    Args:
        scheme: of the store.
        prefixes: of any scheme; those of this one count.
        endpoint: of a store that speaks S3 and is not Amazon's; empty: the cloud's own. ``http://`` is spoken where it
            says so, and nowhere else.
        max_bytes: most bytes of all files together; the store is asked before anything is fetched.
    """

    def __init__(self, scheme: Scheme, prefixes: Sequence[Prefix], endpoint: str, max_bytes: int) -> None:
        self._scheme = scheme
        self._prefixes = [prefix for prefix in prefixes if prefix.scheme == scheme]
        self._endpoint = endpoint if scheme == "s3" else ""
        self._max_bytes = max_bytes

    def fetch(self, location: str, staging: Staging) -> None:
        """Bring the files whose keys begin with ``location`` and a slash into ``staging``; blocks.

        What was listed is what is fetched: each object is asked for by its entity tag.

        Raises:
            ObjectsDenied: outside the prefixes, not plain names between slashes, or too many objects below it.
            SourceNotFound: no object there.
            SourceUnavailable: the store did not answer, refused, or changed meanwhile.
            UploadTooLarge: the adapter's files exceed the limit.
        """
        parts = _parts(location)
        if parts is None:
            raise ObjectsDenied("it has parts that are no plain names")
        if not any(prefix.holds(parts) for prefix in self._prefixes):
            raise ObjectsDenied("it is not below a configured prefix")
        with _store_errors():
            store = self._open(parts)
            tags, sizes = listed(store)
            found = listing(sizes)
            if not found.own:
                raise SourceNotFound
            if sum(found.own.values()) > self._max_bytes:
                raise UploadTooLarge(self._max_bytes)
            for name in found.beside:
                staging.leave_out(name)
            for name, size in (found.own | found.along).items():
                staging.receive(name, _chunks(store, name, tags[name], size))

    def _open(self, parts: Sequence[str]) -> ObjectStore:
        config: S3Config | None = {"endpoint": self._endpoint} if self._endpoint else None
        return from_url(
            f"{self._scheme}://{'/'.join(parts)}",
            config=config,
            client_options={
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "read_timeout": timedelta(seconds=_SILENT_S),
                "allow_http": self._endpoint.startswith("http://"),
            },
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=RETRY_S)},
        )


def object_sources(prefixes: Sequence[str], endpoint: str, max_bytes: int) -> dict[str, ObjectSource]:
    """What reads each scheme that one of ``prefixes`` has; see `Prefix.parse` and `ObjectSource` for the arguments."""
    parsed = [Prefix.parse(text) for text in prefixes]
    used = dict.fromkeys(prefix.scheme for prefix in parsed)
    return {scheme: ObjectSource(scheme, parsed, endpoint, max_bytes) for scheme in used}


def listed(store: ObjectStore) -> tuple[dict[str, str | None], dict[str, int]]:
    """The entity tag and the bytes of each object, by what its key has behind the adapter's address."""
    tags: dict[str, str | None] = {}
    sizes: dict[str, int] = {}
    for page in obstore.list(store, chunk_size=MOST_LISTED):
        for entry in page:
            tags[entry["path"]], sizes[entry["path"]] = entry["e_tag"], entry["size"]
        if len(sizes) > MOST_LISTED:
            raise ObjectsDenied(f"more than {MOST_LISTED} objects lie below it, so it is not an adapter's own address")
    return tags, sizes


def _chunks(store: ObjectStore, name: str, tag: str | None, size: int) -> Iterator[bytes]:
    options: obstore.GetOptions = {"if_match": tag} if tag else {}
    got = 0
    for chunk in obstore.get(store, name, options=options).stream(min_chunk_size=_CHUNK_BYTES):
        got += len(chunk)
        yield bytes(chunk)
    if got != size:
        raise SourceUnavailable(f"{got} bytes of {name} came, and {size} are listed")


@contextmanager
def _store_errors() -> Iterator[None]:
    """What obstore raises, as ours; its own texts have addresses in them and go no further."""
    try:
        yield
    except (NotFoundError, FileNotFoundError):
        raise SourceNotFound from None
    except (PermissionDeniedError, UnauthenticatedError):
        raise SourceUnavailable("the object store refuses the server's credentials") from None
    except BaseError as error:
        raise SourceUnavailable(f"object store: {type(error).__name__}") from None
