"""Adapter files in an object store: ``objects/<digest>/`` below one address, written once and read by any server.

The weights are written first and the configuration last, so that an adapter is whole where its configuration is. Every
call blocks, and runs in a thread: obstore's own blocking calls are used, because its asynchronous ones can abort the
interpreter at its exit.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from amalgam.errors.registry import ObjectStoreUnavailable, ObjectStoreUnfit
from amalgam.store.file_rules import CARD_FILE, CONFIG_FILE, LINEAGE_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from obstore.store import S3Config

_ORDER: Final = (WEIGHTS_FILE, LINEAGE_FILE, CARD_FILE, CONFIG_FILE)
"""They are written in this order; what is removed goes in the other direction."""
_CHUNK_BYTES: Final = 4 << 20
_CONNECT_S: Final = 5
_SILENT_S: Final = 10
_RETRY_S: Final = 10
_FULL: Final = ("507 Insufficient Storage", "QuotaExceeded")
"""Stores that have no room say this of themselves, within obstore's texts: there is no class for it."""
_ANSWER_S: Final = 600.0
"""One file takes at most so long, however it trickles."""


class Bucket:
    """One address in an object store, such as ``s3://models/adapters``.

    Args:
        store: what obstore opened there.
        clock: monotonic seconds.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock

    @classmethod
    def open(cls, address: str, endpoint: str = "") -> "Bucket":
        """Use the store at ``address`` with the credentials that each cloud's own tools would find; asks nothing yet.

        Args:
            endpoint: of a store that speaks S3 and is not Amazon's; empty: the cloud's own.

        Raises:
            ObjectStoreUnfit: no store can be meant.
        """
        is_s3 = address.startswith("s3://")
        config: S3Config | None = {"endpoint": endpoint} if endpoint and is_s3 else None
        try:
            store = from_url(
                address,
                config=config,
                client_options={
                    "connect_timeout": timedelta(seconds=_CONNECT_S),
                    "read_timeout": timedelta(seconds=_SILENT_S),
                    "allow_http": is_s3 and endpoint.startswith("http://"),
                },
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=_RETRY_S)},
            )
        except BaseError as error:
            raise ObjectStoreUnfit(f"it cannot be opened ({type(error).__name__})") from None
        return cls(store)

    def require_exclusive(self) -> None:
        """Prove that of two writers of one object the second is told so, which everything else relies on.

        Raises:
            ObjectStoreUnfit: the store took both.
            ObjectStoreUnavailable: it does not answer, or refuses.
        """
        name = f"probes/{secrets.token_hex(8)}"
        with bucket_errors():
            obstore.put(self._store, name, b"first", mode="create", use_multipart=False)
            try:
                obstore.put(self._store, name, b"second", mode="create", use_multipart=False)
            except AlreadyExistsError:
                return
            finally:
                obstore.delete(self._store, name)
        raise ObjectStoreUnfit("it takes an object twice where the second writer must be refused")

    def require_readable(self) -> None:
        """Prove that this process may read there, with nothing written.

        Raises:
            ObjectStoreUnavailable: it does not answer, or refuses.
        """
        self.size("0" * 64)

    def keep(self, digest: str, folder: Path) -> bool:
        """Write the files in ``folder`` under their digest; what another writer was faster with stays.

        Returns: whether all of it was new.

        Raises:
            ObjectStoreUnavailable: the store does not answer, or refuses.
        """
        created = True
        for name in _present(folder):
            with bucket_errors(), (folder / name).open("rb") as file:
                try:
                    obstore.put(self._store, _key(digest, name), file, mode="create", use_multipart=False)
                except AlreadyExistsError:
                    created = False
        return created

    def replace(self, digest: str, folder: Path) -> None:
        """Write the files in ``folder`` over what lies under their digest.

        Raises:
            ObjectStoreUnavailable: the store does not answer, or refuses.
        """
        for name in _present(folder):
            with bucket_errors(), (folder / name).open("rb") as file:
                obstore.put(self._store, _key(digest, name), file)

    def fetch(self, digest: str, folder: Path) -> bool:
        """Bring the files of a digest into ``folder``; their bytes are not checked.

        Returns: whether they are there, all of them.

        Raises:
            ObjectStoreUnavailable: the store does not answer, refuses, or takes too long.
            OSError: the folder's disk.
        """
        for name in _ORDER:
            try:
                with bucket_errors():
                    self._fetch_file(_key(digest, name), folder / name)
            except NotFoundError:
                if name in (WEIGHTS_FILE, CONFIG_FILE):
                    return False
        return True

    def _fetch_file(self, key: str, target: Path) -> None:
        deadline = self._clock() + _ANSWER_S
        answer = obstore.get(self._store, key)
        size, got = answer.meta["size"], 0
        with target.open("wb") as file:
            for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                got += file.write(chunk)
                if self._clock() > deadline:
                    raise ObjectStoreUnavailable(f"one file took longer than {_ANSWER_S:g} seconds")
        if got != size:
            raise ObjectStoreUnavailable(f"{got} bytes came of {size}")

    def size(self, digest: str) -> int:
        """The bytes of its weights, 0 where they are not there.

        Raises:
            ObjectStoreUnavailable: the store does not answer, or refuses.
        """
        try:
            with bucket_errors():
                return obstore.head(self._store, _key(digest, WEIGHTS_FILE))["size"]
        except NotFoundError:
            return 0

    def digests(self) -> frozenset[str]:
        """Every digest that has an object.

        Raises:
            ObjectStoreUnavailable: the store does not answer, or refuses.
        """
        with bucket_errors():
            found = obstore.list_with_delimiter(self._store, "objects")["common_prefixes"]
        return frozenset(prefix.rpartition("/")[2] for prefix in found)

    def remove(self, digest: str) -> None:
        """Remove the files of a digest; that they are gone already is fine.

        Raises:
            ObjectStoreUnavailable: the store does not answer, or refuses.
        """
        for name in reversed(_ORDER):
            with bucket_errors():
                try:
                    obstore.delete(self._store, _key(digest, name))
                except NotFoundError:
                    continue


def _key(digest: str, name: str) -> str:
    return f"objects/{digest}/{name}"


def _present(folder: Path) -> Sequence[str]:
    return [name for name in _ORDER if (folder / name).is_file()]


@contextmanager
def bucket_errors() -> Iterator[None]:
    """What obstore raises, as ours, but for what is not there; its own texts have addresses in them and go no further.

    Raises:
        ObjectStoreUnavailable: the store does not answer, or refuses.
    """
    try:
        yield
    except (NotFoundError, AlreadyExistsError):
        raise
    except FileNotFoundError as error:
        # What is not there is Python's own error in some of its calls, and its own in others.
        raise NotFoundError(error.strerror or "no such object") from None
    except BaseError as error:
        if any(word in str(error) for word in _FULL):
            raise ObjectStoreUnavailable("it has no room left") from None
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            raise ObjectStoreUnavailable("it refuses the server's credentials") from None
        raise ObjectStoreUnavailable(type(error).__name__) from None
