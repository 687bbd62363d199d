"""The plugin: active on CPU alone, off by a switch, strict about vLLM's version, and cheap."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from amalgam.engine.cpu_lora import WRAPPER, install, is_tested
from amalgam.errors.cpu_lora import CpuLoraUntested


class Platform:
    """Stands in for vLLM's platform class, which each test may change."""

    cpu = True

    @classmethod
    def get_punica_wrapper(cls):
        return "stock"

    def is_cpu(self):
        return self.cpu


@pytest.fixture
def vllm(monkeypatch):
    """A vLLM of the tested version, on CPU: its platform and its version can be set."""
    platform_class = type("CpuPlatform", (Platform,), {})
    fake = SimpleNamespace(__version__="0.32.0", platform=platform_class())
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=fake.platform))
    monkeypatch.delenv("AMALGAM_CPU_LORA", raising=False)
    fake.replaced = []
    uptake = SimpleNamespace(replace_uptake=lambda: fake.replaced.append(True))
    monkeypatch.setitem(sys.modules, "amalgam.engine.cpu_lora_uptake", uptake)
    return fake


def test_cpu_platform_names_our_wrapper(vllm):
    install()
    install()
    assert not vllm.replaced
    assert vllm.platform.get_punica_wrapper() == WRAPPER
    assert vllm.replaced


def test_other_platforms_keep_theirs(vllm):
    type(vllm.platform).cpu = False
    vllm.__version__ = "0.33.0"
    install()
    assert vllm.platform.get_punica_wrapper() == "stock"


def test_switch_turns_it_off_on_any_version(vllm, monkeypatch):
    monkeypatch.setenv("AMALGAM_CPU_LORA", "stock")
    vllm.__version__ = "0.33.0"
    install()
    assert vllm.platform.get_punica_wrapper() == "stock"


def test_untested_version_is_refused_with_the_way_out(vllm):
    vllm.__version__ = "0.33.1"
    with pytest.raises(CpuLoraUntested, match=r"0\.33\.1.*AMALGAM_CPU_LORA=stock"):
        install()
    assert vllm.platform.get_punica_wrapper() == "stock"


@pytest.mark.parametrize("version", ["0.32.0", "0.32.3", "0.32.0+cpu", "0.32.1rc1"])
def test_releases_of_the_tested_version(version):
    assert is_tested(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.3.20", "0.320.0", "1.32.0", "dev"])
def test_other_versions(version):
    assert not is_tested(version)


def test_plugin_imports_neither_torch_nor_vllm():
    program = "import sys, amalgam.engine.cpu_lora; print(sorted({'torch', 'vllm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
