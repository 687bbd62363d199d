"""Adapters from a model hub: ``hf://org/repo`` or ``hf://org/repo@revision``, through huggingface_hub."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from amalgam.errors.adapters import PathDenied, SourceNotFound, SourceUnavailable, UploadTooLarge
from amalgam.store.file_rules import listing
from amalgam.store.staging import Staging

_LOCATION: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[A-Za-z0-9][\w./-]{0,127}))?"
)
_CHUNK_BYTES: Final = 1 << 20


class HubSource:
    """Fetches an adapter's own files and what says how to ask it: no code, no pickle, no vocabulary is downloaded.

    Args:
        endpoint: of the hub; None: huggingface_hub's own, with its own environment variables for tokens.
        max_bytes: most bytes of all files together; the hub is asked before anything is downloaded.
    """

    def __init__(self, endpoint: str | None, max_bytes: int) -> None:
        self._endpoint = endpoint
        self._max_bytes = max_bytes

    def fetch(self, location: str, staging: Staging) -> None:
        """Bring the adapter's files into ``staging``; blocks.

        Raises:
            PathDenied: not of the form ``org/repo[@revision]``.
            SourceNotFound: no such repository, revision, or no adapter in it.
            SourceUnavailable: the hub did not answer.
            UploadTooLarge: its files exceed the limit.
        """
        found = _LOCATION.fullmatch(location)
        if found is None or ".." in location:
            raise PathDenied("a hub source is written hf://org/repo or hf://org/repo@revision")
        import httpx2  # huggingface_hub's transport; its connection errors come through as they are
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

        hub = HfApi(endpoint=self._endpoint)
        try:
            info = hub.model_info(found["repo"], revision=found["revision"], files_metadata=True, timeout=30)
            listed = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            found_files = listing(listed)
            if not found_files.own:
                raise SourceNotFound
            if sum(found_files.own.values()) > self._max_bytes:
                raise UploadTooLarge(self._max_bytes)
            for name in found_files.beside:
                staging.leave_out(name)
            with tempfile.TemporaryDirectory() as folder:
                for name in (*found_files.own, *found_files.along):
                    # By commit: what was listed is what is fetched, also when the branch moves meanwhile.
                    path = hub.hf_hub_download(found["repo"], name, revision=info.sha, local_dir=folder)
                    staging.receive(name, _chunks(Path(path)))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise SourceNotFound from None
        except (HfHubHTTPError, httpx2.TransportError, OSError) as error:
            raise SourceUnavailable(type(error).__name__) from error


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
