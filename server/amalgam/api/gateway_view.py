"""What gateways are told: the adapters in the engine's memory, by the names that clients give them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from amalgam.api.state import Services
from amalgam.domain.adapter import AdapterVersion, VersionRef
from amalgam.domain.blend import is_blend_name
from amalgam.engine.protocol import EngineInfo, Resident
from amalgam.services.catalog import Catalog
from amalgam.telemetry.gateway_metrics import GatewayView, LoadedAdapter

LOOK_S: Final = 0.5
"""A scrape waits no longer for a registry that does not answer."""


async def gateway_view(app_services: Services) -> GatewayView:
    """A look at what is in memory; for names that are not, it waits for the registry, but not for long."""
    info, catalog = app_services.engine.info(), app_services.catalog
    names = {name for one in info.residents for name in _names(one) if not is_blend_name(one.engine_name)}
    loaded = loaded_adapters(info, catalog, await catalog.meanings(names, LOOK_S))
    asked = app_services.inference.asked
    return GatewayView(catalog.base.served_name, info.slots, loaded, asked.running, asked.waiting)


def loaded_adapters(
    info: EngineInfo, catalog: Catalog, meanings: Mapping[str, AdapterVersion]
) -> Sequence[LoadedAdapter]:
    """Residents that a request can still ask for.

    Args:
        info: of the engine.
        catalog: for aliases.
        meanings: what the residents' names, and those of their adapters, mean now.
    """
    aliases = _aliases_of_one(catalog)
    in_batch, found = {one.engine_name for one in info.in_batch}, list[LoadedAdapter]()
    for resident in info.residents:
        meant = [name for name in _names(resident) if name in meanings and meanings[name].id == resident.lora_id]
        if is_blend_name(resident.engine_name):
            names, rank = [resident.engine_name], info.max_rank
        elif resident.engine_name in meant:
            names, rank = meant, meanings[resident.engine_name].rank
        else:
            # It was deleted, and is on its way out.
            continue
        names += [alias for name in tuple(names) for alias in aliases.get(name, ())]
        is_placed = resident.engine_name in in_batch
        found.append(LoadedAdapter(names, "gpu" if is_placed else "cpu", resident.pinned, rank))
    return found


def _names(resident: Resident) -> Sequence[str]:
    """That of the version, then that of its adapter, which means its default version."""
    ref = VersionRef.parse(resident.engine_name)
    return [resident.engine_name] if ref is None else [resident.engine_name, ref.name]


def _aliases_of_one(catalog: Catalog) -> Mapping[str, list[str]]:
    """The aliases that mean one thing only, by what they mean."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for alias in catalog.snapshot.aliases.values():
        if len(alias.targets) == 1:
            found[alias.targets[0].model].append(alias.name)
    return found
