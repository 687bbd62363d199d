"""Errors of settings: variables of the environment, and the file of ``--config``."""

from collections.abc import Sequence

from amalgam.errors import InvalidRequest
from amalgam.errors.requests import FieldRefused


class SettingUnknown(InvalidRequest):
    """A variable that begins with ``AMALGAM_``, or a name in the settings file, that is no setting.

    Next step: take the name that was meant, or leave it out.
    """

    code = "unknown_setting"

    def __init__(self, name: str, place: str, near: Sequence[str]) -> None:
        meant = f"Did you mean {' or '.join(near)}?" if near else "docs/settings.md lists all."
        super().__init__(f"{name} {place} is no setting, and would have no effect. {meant} Else leave it out.")


class SettingRefused(FieldRefused):
    """A setting has a value that is not allowed."""

    def __init__(self, name: str, place: str, reason: str, meaning: str) -> None:
        self.reason = reason
        super().__init__(name, f"the value {place} is refused: {reason}. It sets: {meaning}. Give another value.")


class SettingsFileUnusable(InvalidRequest):
    """The settings file of ``--config`` or ``AMALGAM_CONFIG`` is not there, cannot be read, or is no TOML.

    Next step: check the path and the place in the file that the message names.
    """

    code = "settings_file_unusable"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"The settings file {path} cannot be used: {reason}. Check --config or AMALGAM_CONFIG.")
