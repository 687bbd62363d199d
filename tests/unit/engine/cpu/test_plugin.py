"""The plugin: active on CPU alone, off by a switch, strict about vLLM's version, and cheap."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.engine.cpu import patches
from amalgam.engine.cpu.plugin import WRAPPER, install, is_tested
from amalgam.errors.cpu_lora import CpuLoraUntested


class Platform:
    """Stands in for vLLM's platform class, which each test may change."""

    cpu = True

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return "stock"

    @classmethod
    def import_ir_kernels(cls) -> None:
        pass

    @classmethod
    def get_default_ir_op_priority(cls, vllm_config: Any) -> Any:
        pass

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        pass

    def is_cpu(self) -> bool:
        return self.cpu


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A vLLM of the tested version, on CPU: its platform and its version can be set."""
    platform_class = type("CpuPlatform", (Platform,), {})
    fake = SimpleNamespace(__version__="0.32.0", platform=platform_class())
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=fake.platform))
    monkeypatch.delenv("AMALGAM_CPU_LORA", raising=False)
    fake.replaced = []
    apply = patches.apply

    def noted(stage: Any, on: Any = None) -> None:
        fake.replaced.append(stage)
        if stage != "layers":
            apply(stage, on=on)

    monkeypatch.setattr(patches, "apply", noted)
    return fake


def test_cpu_platform_names_our_wrapper(vllm: SimpleNamespace) -> None:
    install()
    install()
    assert "layers" not in vllm.replaced
    assert vllm.platform.get_punica_wrapper() == WRAPPER
    assert vllm.replaced[-1] == "layers"


def test_other_platforms_keep_theirs(vllm: SimpleNamespace) -> None:
    type(vllm.platform).cpu = False
    vllm.__version__ = "0.33.0"
    install()
    assert vllm.platform.get_punica_wrapper() == "stock"


def test_switch_turns_it_off_on_any_version(vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_CPU_LORA", "stock")
    vllm.__version__ = "0.33.0"
    install()
    assert vllm.platform.get_punica_wrapper() == "stock"


def test_untested_version_is_refused_with_the_way_out(vllm: SimpleNamespace) -> None:
    vllm.__version__ = "0.33.1"
    with pytest.raises(CpuLoraUntested, match=r"0\.33\.1.*AMALGAM_CPU_LORA=stock"):
        install()
    assert vllm.platform.get_punica_wrapper() == "stock"


@pytest.mark.parametrize("version", ["0.32.0", "0.32.3", "0.32.0+cpu", "0.32.1rc1"])
def test_releases_of_the_tested_version(version: str) -> None:
    assert is_tested(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.3.20", "0.320.0", "1.32.0", "dev"])
def test_other_versions(version: str) -> None:
    assert not is_tested(version)


def test_plugin_imports_neither_torch_nor_vllm() -> None:
    program = "import sys, amalgam.engine.cpu.plugin; print(sorted({'torch', 'vllm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
