"""`amalgam merge build --fit`: inputs that are fitted to prompts of their own, and files that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from amalgam.cli.merge import app
from amalgam.merge.projection import RIDGE
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import open_tensors
from tests.adapter_factory import write_lora
from tests.support.reading_base import write_reading_base

SMALL: dict[str, Any] = {"layers": 4, "hidden": 32, "heads_kv_dim": 16, "intermediate": 64}
Q = "model.layers.3.self_attn.q_proj"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("fitted")
    write_reading_base(found / "base", torch.float32)
    write_lora(found / "a", rank=4, seed=1, **SMALL)
    write_lora(found / "b", rank=2, seed=2, modules=("q_proj", "up_proj"), **SMALL)
    return found


def run(root: Path, out: Path, prompts: Any, *more: str) -> Any:
    file = out.with_suffix(".json")
    file.write_text(json.dumps(prompts))
    order = ["build", f"{root}/a + {root}/b", "-o", out, "--fit", file, "--dtype", "float32", *more]
    return CliRunner().invoke(app, [str(part) for part in order])


def delta(folder: Path, module: str) -> torch.Tensor:
    header = read_peft_folder(folder, None).require()
    a, b = open_tensors(folder, header).factors(module)
    return header.modules[module].scaling * b.double() @ a.double()


def test_what_one_input_reads_alone_is_what_it_does_there(root: Path, tmp_path: Path) -> None:
    prompts = {"a": ["How many users?", "List all."], f"{root}/b": [{"prompt": "As JSON: Ann"}, {"prompt": "x: 1"}]}
    done = run(root, tmp_path / "out", prompts, "--base", f"{root}/base")
    assert done.exit_code == 0, done.output
    fit = json.loads((tmp_path / "out" / "lineage.json").read_text())["fit"]
    assert (fit["method"], fit["by"], fit["unread"]) == ("iteris", "kept", 0)
    assert fit["tokens"] > 60
    # No prompt tells the inputs of down_proj from each other, and b has none: the ridge alone takes from a.
    alone = delta(root / "a", "model.layers.0.mlp.down_proj")
    kept = delta(tmp_path / "out", "model.layers.0.mlp.down_proj")
    assert 0.2 < float((kept * alone).sum() / alone.square().sum()) < 1 / (1 + RIDGE / 2)
    plain = delta(root / "a", Q) + delta(root / "b", Q)
    assert float((delta(tmp_path / "out", Q) - plain).norm()) > 0.1 * float(plain.norm())


def test_references_are_read_as_answers(root: Path, tmp_path: Path) -> None:
    items = {name: [{"prompt": f"{name}?", "reference": "yes"}] for name in ("a", "b")}
    done = run(root, tmp_path / "out", items, "--base", f"{root}/base")
    assert done.exit_code == 0, done.output
    fit = json.loads((tmp_path / "out" / "lineage.json").read_text())["fit"]
    assert (fit["by"], fit["tokens"]) == ("items", 2 * len("a?yes"))


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ({"a": ["x"]}, "b has no prompts"),
        ({"a": ["x"], "b": []}, "b has no prompts"),
        (["x"], "no JSON object of prompts"),
        ({"a": [1], "b": ["x"]}, "prompt 1 of"),
        ({"a": [{"prompt": "x", "reference": "y"}], "b": ["x"]}, "some have none"),
    ],
)
def test_prompts_that_do_not_go_with_the_inputs_are_refused(
    root: Path, tmp_path: Path, prompts: Any, says: str
) -> None:
    done = run(root, tmp_path / "out", prompts, "--base", f"{root}/base")
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_the_fit_will_take(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"a": ["x", "y"], "b": ["z"]}))
    order = ["plan", f"{root}/a + {root}/b", "--fit", str(file), "--base", f"{root}/base"]
    told = json.loads(CliRunner().invoke(app, [*order, "--json"]).output)
    assert told["fit"]["prompts"] == {f"{root}/a": 2, f"{root}/b": 1}
    assert told["fit"]["reading"]["threads"] == torch.get_num_threads()
    assert not any("kept_unmeasured" in text for text in told["warnings"])
    monkeypatch.setattr("amalgam.workers.reading_fit.free_memory", lambda: 1000)
    done = CliRunner().invoke(app, order)
    assert "iteris: 3 prompts with answers of at most 64 tokens" in done.output
    assert "fit_unread: the base model takes about" in " ".join(done.stderr.split())
    assert CliRunner().invoke(app, order[:4]).exit_code == 2


def test_a_merge_without_prompts_says_that_nothing_measured_it(root: Path, tmp_path: Path) -> None:
    for expression, said in ((f"{root}/a + {root}/b", 1), (f"{root}/a", 0)):
        out = tmp_path / f"out{said}"
        done = CliRunner().invoke(app, ["build", expression, "-o", str(out)])
        assert done.exit_code == 0, done.output
        warnings = json.loads((out / "lineage.json").read_text())["warnings"]
        assert [text.startswith("kept_unmeasured: ") for text in warnings].count(True) == said
        assert ("kept_unmeasured" in done.stderr) == bool(said)
        assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
        assert (tmp_path / f"out{said}-report.html").read_text().count("kept_unmeasured") == said
        told = json.loads(CliRunner().invoke(app, ["plan", expression, "--json"]).output)
        assert [text.startswith("kept_unmeasured: ") for text in told["warnings"]].count(True) == said


def test_it_needs_the_base_model(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path / "out", {"a": ["x"], "b": ["y"]})
    assert done.exit_code == 2
    assert "Name its folder" in " ".join(done.output.split())
    bare = tmp_path / "bare"
    bare.mkdir()
    done = run(root, tmp_path / "other", {"a": ["x"], "b": ["y"]}, "--base", str(bare))
    assert done.exit_code == 2
    assert "Traceback" not in done.output
