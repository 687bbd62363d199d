"""Certificates for tests, made by the program ``openssl``."""

import shutil
import subprocess
from pathlib import Path

import pytest


def write_certificate(folder: Path, *, passphrase: str | None = None) -> tuple[Path, Path]:
    """A certificate of this machine that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    secret = ["-noenc"] if passphrase is None else ["-passout", f"pass:{passphrase}"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", "req", "-x509", "-days", "2", "-subj", "/CN=localhost", *names, *made, *secret]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
