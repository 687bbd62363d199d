"""The environment of the processes that a server starts: its own with the settled settings, without what is secret."""

from collections.abc import Mapping
from typing import Final

from amalgam.settings import Settings, settle
from amalgam.settings.sources import DATABASE_SECRETS, OBJECT_STORE_PREFIXES, is_secret

_OF_TEMPLATES: Final = frozenset({"PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ"})


def child_environment(
    environment: Mapping[str, str], settings: Settings, max_lora_rank: int, model_dir: str | None
) -> dict[str, str]:
    """Flags of the command line and the file of settings reach both children this way, and keys do not.

    Args:
        environment: of this process.
        settings: of this process, flags included.
        max_lora_rank: of the engine.
        model_dir: folder of the base model, for the merge worker; None for the blend process, which asks no database.
    """
    given = {name: value for name, value in environment.items() if not is_secret(name)}
    settle(given, settings)
    given |= {"AMALGAM_MAX_LORA_RANK": str(max_lora_rank), "OMP_NUM_THREADS": str(settings.merging.worker_threads)}
    if model_dir is not None:
        given |= {"AMALGAM_BASE_MODEL": model_dir, "AMALGAM_DATABASE_URL": settings.storage.database_url}
        given |= {name: value for name, value in environment.items() if name in DATABASE_SECRETS}
        if settings.storage.bucket:
            given |= {name: value for name, value in environment.items() if name.startswith(OBJECT_STORE_PREFIXES)}
    return given


def template_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the template process: what Python needs to find its modules, and the zone that dates are in.

    Args:
        environment: of this process.
    """
    return {name: value for name, value in environment.items() if name in _OF_TEMPLATES}
