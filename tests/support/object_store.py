"""A server that speaks S3 on loopback, and a line to it that a test may hold up."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import ObjectStore, S3Store

BUCKET = "adapters"
ADDRESS = f"s3://{BUCKET}/team"


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a store with the empty bucket `BUCKET`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    httpx.put(f"http://{host}:{port}/{BUCKET}").raise_for_status()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def give_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What obstore finds as the credentials of the store."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-a-test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def objects_of(endpoint: str) -> ObjectStore:
    """The objects below `ADDRESS`, past the code under test."""
    return S3Store(BUCKET, prefix="team", endpoint=endpoint, client_options={"allow_http": True})


def names_in(endpoint: str) -> set[str]:
    """The keys of everything below `ADDRESS`."""
    return {entry["path"] for page in obstore.list(objects_of(endpoint)) for entry in page}
