"""Adapters of experts in one parameter, as pairs expert by expert, for the time that a command reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from amalgam.store.base_model import base_spec
from amalgam.store.fused_experts import names_parameters
from amalgam.store.peft_config import load_config
from amalgam.store.separated_folder import write_separated


@contextmanager
def separated(folder: Path, base: Path | None) -> Iterator[Path | None]:
    """A folder with the adapter in ``folder`` as pairs, for the time of a block; None where it is not to be rewritten.

    Args:
        base: Folder of the base model, where there is one at hand.

    Raises:
        BaseModelUnreadable: the base model.
        OSError: a file cannot be read, or there is no place for temporary ones.
    """
    config, _ = load_config(folder)
    if base is None or not names_parameters(config):
        yield None
        return
    with TemporaryDirectory(prefix="amalgam-separated-") as beside:
        digests = write_separated(folder, base_spec(base, base.name, max_lora_rank=1), Path(beside))
        yield None if digests is None else Path(beside)
