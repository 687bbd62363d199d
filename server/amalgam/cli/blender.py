"""`amalgam blender`: the process that builds blends. The server starts it and speaks to it by lines."""

from amalgam.settings import Settings


def blender() -> None:
    """Build what comes in on standard input until it ends."""
    from amalgam.blender import run_blender
    from amalgam.telemetry.logs import configure_logging

    settings = Settings()
    configure_logging(settings.log_format)
    run_blender(settings)
