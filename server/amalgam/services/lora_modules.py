"""Adapters that the command line names (``--lora-modules``): registered at the start, with the checks of any other."""

from collections.abc import Mapping

from amalgam.services.adapters import AdapterService
from amalgam.services.new_versions import NewVersion


async def register_modules(adapters: AdapterService, modules: Mapping[str, str]) -> None:
    """Have each name serve what lies at its source: the same bytes are nothing new, others are a new version.

    Args:
        adapters: where they are registered.
        modules: the source of each, by name.

    Raises: what `AdapterService.take_source` does; the server does not start without what it was told to serve.
    """
    for name, source in modules.items():
        await adapters.take_source(NewVersion(name), source)
