"""Where a server's adapters may be fetched from, as its settings say."""

from amalgam.settings import Settings
from amalgam.store.hub_source import HubSource
from amalgam.store.object_source import object_sources
from amalgam.store.sources import Sources, sources


def adapter_sources(settings: Settings) -> Sources:
    """Folders, a hub where that is on, and object stores below configured prefixes."""
    given, most = settings.adapters, settings.http.max_upload_bytes
    hub = HubSource(given.hub_endpoint or None, most) if given.hub_sources else None
    return sources(given.source_roots, hub, object_sources(given.object_sources, given.object_endpoint, most))
