"""`amalgam blender`: the process that builds blends. The server starts it and speaks to it by lines."""

from amalgam.settings import Settings


def blender() -> None:
    """Build what comes in on standard input until it ends."""
    from amalgam.telemetry.logs import configure_logging
    from amalgam.workers.blender import run_blender

    settings = Settings()
    configure_logging(settings.logs.log_format)
    run_blender(settings)
