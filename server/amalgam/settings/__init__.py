"""The only reader of the environment, and of the file of settings.

What the command line gives wins over a variable, and a variable over the file.
"""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from amalgam.errors.settings import SettingRefused
from amalgam.errors.type_words import told
from amalgam.settings import groups
from amalgam.settings.sources import ENVIRONMENT, PREFIX, VLLM_KEY, from_environment, from_file, in_file

_CONFIG: Final = "config"
_COMMAND_LINE: Final = "on the command line"


class Settings(BaseSettings):
    """Configuration of one process: a field for each subsystem, and in it the settings by name.

    Args:
        given: settings by name, whatever their subsystem; they win over the environment.

    Raises:
        SettingUnknown: a variable or a name in the file that is no setting.
        SettingRefused: a value that is not allowed.
        SettingsFileUnusable: the file cannot be read.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    config: Path | None = Field(None, description="file of settings in TOML; what a variable says wins over it")
    http: groups.HttpSettings = Field(default_factory=groups.HttpSettings)
    access: groups.AccessSettings = Field(default_factory=groups.AccessSettings)
    tls: groups.TlsSettings = Field(default_factory=groups.TlsSettings)
    usage: groups.UsageSettings = Field(default_factory=groups.UsageSettings)
    storage: groups.StorageSettings = Field(default_factory=groups.StorageSettings)
    adapters: groups.AdaptersSettings = Field(default_factory=groups.AdaptersSettings)
    engine: groups.EngineSettings = Field(default_factory=groups.EngineSettings)
    queue: groups.QueueSettings = Field(default_factory=groups.QueueSettings)
    merging: groups.MergingSettings = Field(default_factory=groups.MergingSettings)
    blends: groups.BlendsSettings = Field(default_factory=groups.BlendsSettings)
    exports: groups.ExportsSettings = Field(default_factory=groups.ExportsSettings)
    evaluations: groups.EvaluationsSettings = Field(default_factory=groups.EvaluationsSettings)
    learning: groups.LearningSettings = Field(default_factory=groups.LearningSettings)
    batches: groups.BatchesSettings = Field(default_factory=groups.BatchesSettings)
    logs: groups.LogsSettings = Field(default_factory=groups.LogsSettings)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**_grouped(given))
        except ValidationError as error:
            raise _refused(error, given) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given, the environment, the file: the first that has a value wins."""
        variables = from_environment(os.environ, known_names())
        path = {**variables, **init_settings()}.get(_CONFIG)
        written = from_file(Path(path), _names()) if path else {}
        sources = (InitSettingsSource(settings_cls, _grouped(given)) for given in (variables, written))
        return init_settings, *sources

    @property
    def ray_token(self) -> Path:
        """The file with the token of Ray."""
        return (self.engine.ray_token_file or self.storage.store / "ray_token").absolute()

    def values(self) -> dict[str, Any]:
        """Every setting by its name, as `Settings` takes them."""
        found: dict[str, Any] = {_CONFIG: self.config}
        for table in subsystems():
            group: BaseModel = getattr(self, table)
            found |= {name: getattr(group, name) for name in type(group).model_fields}
        return found

    def variables(self) -> dict[str, str]:
        """What gives a process these settings by its environment alone, secrets left out."""
        left_out = {*secret_names(), _CONFIG}
        defaults = {name: field.get_default(call_default_factory=True) for name, field in setting_fields().items()}
        return {
            variable(name): _as_text(value)
            for name, value in self.values().items()
            if name not in left_out and value != defaults[name]
        }


def subsystems() -> dict[str, type[BaseModel]]:
    """The class of the settings of each subsystem, by its field here and its table in the file."""
    annotations = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def setting_fields() -> dict[str, FieldInfo]:
    """Every setting by its name, whatever its subsystem."""
    fields = {name: field for group in subsystems().values() for name, field in group.model_fields.items()}
    return {_CONFIG: Settings.model_fields[_CONFIG]} | fields


def known_names() -> frozenset[str]:
    """The names of all settings."""
    return frozenset(setting_fields())


def secret_names() -> frozenset[str]:
    """The settings with keys in them, or with a password in a URL: no other process needs them."""
    secret = [name for name, field in setting_fields().items() if "SecretStr" in str(field.annotation)]
    return frozenset([*secret, "database_url"])


def variable(name: str) -> str:
    """The variable of the environment that gives the setting ``name``."""
    return PREFIX + name.upper()


def settle(environment: MutableMapping[str, str], settings: Settings) -> None:
    """Make ``environment`` say what ``settings`` do, and nothing that is secret: what is started inherits the rest."""
    names = known_names()
    for given in [one for one in environment if one.upper().startswith(PREFIX)]:
        if given.upper().removeprefix(PREFIX).lower() in names:
            del environment[given]
    environment.pop(VLLM_KEY, None)
    environment.update(settings.variables())


def _names() -> dict[str, frozenset[str]]:
    return {table: frozenset(group.model_fields) for table, group in subsystems().items()}


def _grouped(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name as settings by subsystem; what is no setting stays where it is, to be refused."""
    tables = {name: table for table, names in _names().items() for name in names}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in tables:
            found.setdefault(tables[name], {})[name] = value
        else:
            found[name] = value
    return found


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refused(error: ValidationError, given: Mapping[str, Any]) -> SettingRefused:
    """The first thing that is wrong, with the place that it comes from."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    name = next((part for part in place if part in known_names()), ".".join(place) or "settings")
    reason = told(first)
    field = setting_fields().get(name)
    meaning = (field and field.description) or "none"
    variables = from_environment(os.environ, known_names())
    if name in given:
        return SettingRefused(name, _COMMAND_LINE, reason, meaning)
    if name in variables:
        return SettingRefused(variable(name), ENVIRONMENT, reason, meaning)
    table = next((table for table, names in _names().items() if name in names), "")
    path = given.get(_CONFIG) or variables.get(_CONFIG)
    return SettingRefused(f"[{table}] {name}", in_file(Path(str(path))), reason, meaning)
