"""Where settings come from: the environment and a TOML file. What is unknown is refused, with the names near it."""

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from amalgam.errors.settings import SettingsFileUnusable, SettingUnknown

PREFIX: Final = "AMALGAM_"
ENVIRONMENT: Final = "in the environment"

OTHER_VARIABLES: Final[Mapping[str, str]] = {
    "AMALGAM_URL": "the server that the command line asks",
    "AMALGAM_API_KEY": "client key of the command line",
    "AMALGAM_KEY": "the key that requests send which the console copies",
    "AMALGAM_TEST_*": "read by the tests alone",
    "VLLM_API_KEY": "one more of `AMALGAM_API_KEYS`, where vLLM's own server reads its key",
}
"""They are no settings and are read all the same; a ``*`` at the end stands for any name."""

VLLM_KEY: Final = "VLLM_API_KEY"

_SECRET: Final = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|KEY|DATABASE_URL)(_|$)|^PGPASSWORD$"
)
"""It matches variables that hold a secret, whoever reads them: ``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``."""
_OTHERWISE_NAMED: Final = ("AMALGAM_", "VLLM_")
"""Ours are settled by what they are; vLLM's tokens are those of prompts."""
_OURS: Final = frozenset({"AMALGAM_API_KEY", VLLM_KEY})
DATABASE_SECRETS: Final = frozenset({"PGPASSWORD"})
"""The database's driver reads them."""
OBJECT_STORE_PREFIXES: Final = ("AWS_", "AZURE_", "GOOGLE_")
"""The client of object stores reads what begins so."""

_SERVICE_LINK: Final = re.compile(
    r"AMALGAM_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LINKED_PORT: Final = re.compile(r"(tcp|udp|sctp)://")
"""Kubernetes gives the containers of a namespace such variables for every Service; one may be called ``amalgam``."""


def is_secret(name: str) -> bool:
    """Whether a variable of this name is taken to hold a secret: some processes need it for a while, most never."""
    upper = name.upper()
    return upper in _OURS or (not upper.startswith(_OTHERWISE_NAMED) and _SECRET.search(upper) is not None)


def forget_secrets(environment: MutableMapping[str, str]) -> None:
    """Take what is secret out of the ``environment`` of a process that fetches nothing, or nothing any more."""
    for name in [name for name in environment if is_secret(name)]:
        del environment[name]


def from_environment(environment: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """The settings that variables give, by name.

    Args:
        environment: of this process; names are taken in capitals and in small letters.
        known: the names of all settings.

    Raises:
        SettingUnknown: a variable with our prefix that nothing reads.
    """
    found: dict[str, str] = {}
    for variable, text in environment.items():
        name = variable.upper()
        if not name.startswith(PREFIX) or _is_linked(name, text):
            continue
        field = name.removeprefix(PREFIX).lower()
        if field in known:
            found[field] = text
        elif not any(_matches(name, other) for other in OTHER_VARIABLES):
            near = [PREFIX + one.upper() for one in _near(field, known)]
            raise SettingUnknown(variable, ENVIRONMENT, near)
    if key := environment.get(VLLM_KEY):
        found["api_keys"] = ",".join(filter(None, (found.get("api_keys"), key)))
    return found


def _is_linked(name: str, text: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _LINKED_PORT.match(text)))


def _matches(name: str, other: str) -> bool:
    return name.startswith(other[:-1]) if other.endswith("*") else name == other


def from_file(path: Path, groups: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """The settings that a TOML file gives, by name; numbers and truth values as they would be written in a variable.

    Args:
        path: of the file.
        groups: the names of the settings of each table.

    Raises:
        SettingsFileUnusable: not there, not readable, or no TOML.
        SettingUnknown: a table or a name that nothing reads, or a name in another table than its own.
    """
    place, found = in_file(path), dict[str, Any]()
    for table, values in _read(path).items():
        if table not in groups:
            raise SettingUnknown(_shown(table, values), place, _near_tables(table, values, groups))
        if not isinstance(values, dict):
            raise SettingUnknown(table, place, [f"[{table}]"])
        for name, value in values.items():
            if name not in groups[table]:
                raise SettingUnknown(f"[{table}] {name}", place, _near_names(name, groups))
            found[name] = _as_written(value)
    return found


def in_file(path: Path) -> str:
    """How an error names the file as the place of a setting."""
    return f"in {path}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsFileUnusable(str(path), error.strerror or type(error).__name__) from None
    except UnicodeDecodeError as error:
        raise SettingsFileUnusable(str(path), f"it is not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsFileUnusable(str(path), f"it is no TOML ({error})") from None


def _as_written(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _shown(table: str, values: object) -> str:
    return f"[{table}]" if isinstance(values, dict) else table


def _near_tables(table: str, values: object, groups: Mapping[str, Collection[str]]) -> list[str]:
    """What may have been meant on the first level: a table, or a setting that stands above its table."""
    return [f"[{one}]" for one in _near(table, groups)] if isinstance(values, dict) else _near_names(table, groups)


def _near_names(name: str, groups: Mapping[str, Collection[str]]) -> list[str]:
    tables = {one: table for table, names in groups.items() for one in names}
    return [f"[{tables[one]}] {one}" for one in _near(name, tables)]


def _near(name: str, known: Iterable[str]) -> list[str]:
    return get_close_matches(name, list(known), n=3)
