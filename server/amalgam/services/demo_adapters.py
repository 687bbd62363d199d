"""The demo adapters register themselves on the first start: by the same checks as every upload."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from amalgam.registry.adapters import AdapterRegistry
from amalgam.services.adapters import AdapterService
from amalgam.services.new_versions import NewVersion, UploadedFile

_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
_CHUNK_BYTES = 1 << 20


async def register_missing(adapters: AdapterService, registry: AdapterRegistry, folders: Mapping[str, Path]) -> None:
    """Register each folder whose name the registry has never known; one that was deleted stays deleted."""
    known = await registry.names_ever_used(folders)
    for name, folder in folders.items():
        if name not in known:
            await adapters.upload(NewVersion(name, description=f"demo adapter: {name}"), _folder_files(folder))


def _folder_files(folder: Path) -> Iterator[UploadedFile]:
    for name in _FILES:
        path = folder / name
        if path.is_file():
            yield UploadedFile(name, _chunks(path))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
