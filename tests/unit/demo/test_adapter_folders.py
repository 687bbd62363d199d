"""Where the demo adapters are looked for."""

from pathlib import Path
from typing import Any

from amalgam.demo.adapters import demo_adapter_folders


def adapter(folder: Any) -> Any:
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).touch()
    return folder


def test_a_wheel_goes_before_a_checkout(tmp_path: Path) -> None:
    packaged, checkout = tmp_path / "adapters", tmp_path / "demo"
    inside, outside = adapter(packaged / "sql"), adapter(checkout / "json")
    assert demo_adapter_folders(packaged, checkout) == {"sql": inside}
    assert demo_adapter_folders(tmp_path / "none", checkout) == {"json": outside}


def test_neither_means_no_adapters(tmp_path: Path) -> None:
    assert demo_adapter_folders(tmp_path / "a", tmp_path / "b") == {}


def test_folders_that_are_no_adapters_are_left_out(tmp_path: Path) -> None:
    adapter(tmp_path / "code")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").touch()
    assert list(demo_adapter_folders(tmp_path, tmp_path)) == ["code"]
