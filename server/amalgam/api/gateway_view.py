"""What gateways are told: the adapters in the engine's memory, by the names that clients give them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from amalgam.api.state import Services
from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.blend import is_blend_name
from amalgam.engine.protocol import EngineInfo, Resident
from amalgam.services.catalog import Catalog
from amalgam.telemetry.gateway_metrics import GatewayView, LoadedAdapter


def gateway_view(app_services: Services) -> GatewayView:
    """A look at what is in memory; it waits for nobody."""
    info, catalog = app_services.engine.info(), app_services.catalog
    asked = app_services.inference.asked
    base, loaded = catalog.base.served_name, loaded_adapters(info, catalog)
    return GatewayView(base, info.slots, loaded, asked.running, asked.waiting)


def loaded_adapters(info: EngineInfo, catalog: Catalog) -> Sequence[LoadedAdapter]:
    """Residents that a request can still ask for.

    vLLM gives the places in its batch to the adapters that were used last, which are the last ones here too.
    """
    aliases = _aliases_of_one(catalog)
    first_in_batch, found = len(info.residents) - info.slots, list[LoadedAdapter]()
    for place, resident in enumerate(info.residents):
        version = _meant(resident.engine_name, resident, catalog)
        if version is None and not is_blend_name(resident.engine_name):
            # It was deleted, and is on its way out.
            continue
        names = [resident.engine_name]
        if version is not None and _meant(version.name, resident, catalog) is not None:
            names.append(version.name)
        names += [alias for name in tuple(names) for alias in aliases.get(name, ())]
        rank = info.max_rank if version is None else version.rank
        found.append(LoadedAdapter(names, "gpu" if place >= first_in_batch else "cpu", resident.pinned, rank))
    return found


def _meant(name: str, resident: Resident, catalog: Catalog) -> AdapterVersion | None:
    """The resident, where ``name`` means it now."""
    version = catalog.remembered(name)
    return version if version is not None and version.id == resident.lora_id else None


def _aliases_of_one(catalog: Catalog) -> Mapping[str, list[str]]:
    """The aliases that mean one thing only, by what they mean."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for alias in catalog.snapshot.aliases.values():
        if len(alias.targets) == 1:
            found[alias.targets[0].model].append(alias.name)
    return found
