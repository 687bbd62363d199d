import os
import subprocess
import sys
from pathlib import Path

import pytest

from amalgam.services.child_environment import child_environment
from amalgam.settings import Settings, settle

SECRET = {
    "AMALGAM_ADMIN_KEY": "ak_admin_secret",
    "AMALGAM_API_KEYS": "ak_one_secret,ak_two_secret",
    "AMALGAM_METRICS_KEY": "ak_metrics_secret",
    "AMALGAM_DATABASE_URL": "postgresql://me:secret@host/name",
    "HF_TOKEN": "hf_secret",
    "VLLM_API_KEY": "secret",
}


@pytest.mark.parametrize("model_dir", ["/models/base", None], ids=["merge worker", "blend process"])
def test_no_key_reaches_a_process_that_needs_none(model_dir: str | None) -> None:
    settings = Settings(admin_key="ak_admin_secret", database_url=SECRET["AMALGAM_DATABASE_URL"], store=Path("here"))
    given = child_environment(SECRET | {"PATH": "/bin", "AMALGAM_LOG_FORMAT": "json"}, settings, 16, model_dir)
    assert given["PATH"] == "/bin"
    assert (given["AMALGAM_STORE"], given["AMALGAM_MAX_LORA_RANK"]) == ("here", "16")
    holders = {name for name, value in given.items() if "secret" in value}
    assert holders == ({"AMALGAM_DATABASE_URL"} if model_dir else set())


def test_every_setting_that_is_a_secret_is_forgotten() -> None:
    """By its type, so that the next key is among them as well."""
    environment = SECRET | {"AMALGAM_HOST": "127.0.0.1"}
    settle(environment, Settings(admin_key="ak_admin_secret", host="127.0.0.2"))
    assert {name for name in environment if name.startswith("AMALGAM_")} == {"AMALGAM_HOST"}


def test_what_a_server_starts_inherits_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    settle(os.environ, Settings())
    program = "print(open('/proc/self/environ', 'rb').read())"
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "ak_" not in seen
    assert "me:secret@host" not in seen
