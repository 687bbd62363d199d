"""What a file is by its first bytes where it is not what its name says: a broken download, or a pointer to it."""

from typing import Final

BEGINNING_BYTES: Final = 64
"""It tells how much of a file `mistaken` wants to see."""

_BY_BEGINNING: Final = (
    (b"version https://git-lfs", "is a pointer of Git LFS, and not the file. Fetch it with 'git lfs pull'"),
    (b"<!doctype", "is a web page, as a download ends with that needs a login. Fetch the file itself"),
    (b"<html", "is a web page, as a download ends with that needs a login. Fetch the file itself"),
    (b"<?xml", "is XML, as stores of objects tell errors in. Fetch the file itself"),
    (b"gguf", "is a file of llama.cpp's under another name. Give it the ending .gguf"),
    (b"\x1f\x8b", "is compressed with gzip. Unpack it"),
    (b"(\xb5/\xfd", "is compressed with zstd. Unpack it"),
)


def mistaken(beginning: bytes) -> str | None:
    """What a file is, and what to do; None where its beginning says nothing.

    Args:
        beginning: its first `BEGINNING_BYTES`, or all of it.
    """
    if not beginning:
        return "is empty, as a full disk or a broken download leaves it. Save or fetch it again"
    if not beginning.strip(b"\0"):
        return "begins with nothing but zeros, as a broken download leaves it. Fetch it again"
    start = beginning.lstrip().lower()
    return next((said for magic, said in _BY_BEGINNING if start.startswith(magic)), None)
