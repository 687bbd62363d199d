"""deploy/vllm_names.py: which of the names that are imported from vLLM a release lacks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
OURS = """
def first():
    from vllm.engine import Core, gone
    import vllm.moved

try:
    from vllm.old import parser
except ModuleNotFoundError:
    from vllm.new import parser
"""


@pytest.fixture
def names() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_names", ROOT / "deploy" / "vllm_names.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vllm_names"] = module
    spec.loader.exec_module(module)
    return module


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_installed_release_has_every_name(names: ModuleType) -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    assert names.missing(Path(found.origin).parents[1]) == []
    assert len(list(names.alternatives(names.PACKAGE))) > 40


def test_what_a_release_lacks_is_named_and_one_of_two_places_is_enough(names: ModuleType, tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", {"one.py": OURS})
    release = {"vllm/__init__.py": "", "vllm/engine.py": "class Core: ...", "vllm/new.py": "def parser(): ..."}
    absent = names.missing(write(tmp_path / "wheel", release), ours)
    assert [(one.module, one.name) for one in absent] == [("vllm.engine", "gone"), ("vllm.moved", "")]
    release |= {"vllm/engine.py": "if True:\n    gone = Core = 1", "vllm/moved/__init__.py": "", "vllm/new.py": ""}
    absent = names.missing(write(tmp_path / "other", release), ours)
    assert [(one.module, one.name) for one in absent] == [("vllm.old", "parser")]
