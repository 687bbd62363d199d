"""Names of files that come with folders in them: which of them are the adapter's own."""

from typing import Any

import pytest

from amalgam.store.file_rules import CONFIG_FILE as C
from amalgam.store.file_rules import WEIGHTS_FILE as W
from amalgam.store.file_rules import names_at_top


@pytest.mark.parametrize(("paths", "names"), [
    ([C, W], [C, W]),
    ([f"checkpoint-10/{W}", W, C], ["checkpoint-10/", W, C]),
    ([f"out/checkpoint-10/{W}", f"out/{W}", f"out/{C}"], ["checkpoint-10/", W, C]),
    ([f"out/a/b/{W}", f"out/{W}", f"out/{C}"], ["a/", W, C]),
    ([f"x/{C}", f"y/{W}"], [C, W]),
    ([f"x/{W}", f"y/{W}"], [W, W]),
    (["README.md", f"out/{C}", f"out/{W}"], ["README.md", C, W]),
    ([f"./{C}", f"/{W}", f"..\\{W}"], [C, W, W]),
    (["out/adapter_model-00001-of-00002.safetensors", f"out/c/{W}"],
     ["adapter_model-00001-of-00002.safetensors", "c/"]),
    ([f"out/{C}", "out/c/x.bin"], [C, "c/"]),
    ([f"__MACOSX/out/._{W}", f"out/{W}", f"out/{C}", f"out/checkpoint-9/{W}"], ["__MACOSX/", W, C, "checkpoint-9/"]),
    ([f"__MACOSX/a/._{C}", f"a/{C}", "a/b/x.bin"], ["__MACOSX/", C, "b/"]),
    (["a/b/x.bin", "y.bin"], ["x.bin", "y.bin"]),
    (["", "..", "/", "a\0b"], ["", "..", "/", "a\0b"]),
    ([], []),
])  # fmt: skip
def test_the_highest_folder_with_weights_is_the_adapters(paths: Any, names: Any) -> None:
    assert names_at_top(paths) == names
