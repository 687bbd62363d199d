"""`amalgam merge`: what a person types, and what comes back."""

import json

import pytest
from typer.testing import CliRunner

from amalgam.cli.merge import app
from amalgam.merge.methods import METHODS
from amalgam.store.peft_folder import read_peft_folder
from tests.adapter_factory import write_lora

SMALL = {"layers": 2, "hidden": 24, "heads_kv_dim": 8, "intermediate": 40}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    write_lora(root / "a", rank=4, seed=1, **SMALL)
    write_lora(root / "b", rank=2, seed=2, modules=("q_proj", "up_proj"), **SMALL)
    return root


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_build_report_and_a_merge_of_the_merge(folders, tmp_path):
    out = tmp_path / "out"
    done = run("build", f"ties({folders}/a, 0.5*{folders}/b; density=0.5)", "-o", out, "--rank", "4", "--seed", "7")
    assert done.exit_code == 0, done.output
    assert read_peft_folder(out, None).require().rank == 4
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["recipe"]["output"]["rank"] == 4
    page = tmp_path / "page.html"
    assert run("report", out, "--out", page).exit_code == 0
    text = page.read_text()
    assert text.count("<svg") == 5
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "<script" not in text
    again = run(
        "build", f"{out} + {folders}/a", "-o", tmp_path / "deeper", "--rank", "energy=0.9", "--dtype", "float32"
    )
    assert again.exit_code == 0, again.output


def test_plan_tells_without_writing(folders, tmp_path):
    told = run("plan", f"{folders}/a + 0.5*{folders}/b", "--json")
    assert told.exit_code == 0, told.output
    facts = json.loads(told.output)
    assert (facts["rank"], facts["modules"], facts["partial_modules"]) == (6, 14, 10)
    assert len(facts["diagnostics"]) == 14
    assert run("plan", f"{folders}/a").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_file_is_as_good_as_an_expression(folders, tmp_path):
    recipe = {"method": "linear", "inputs": [{"adapter": f"{folders}/a", "weight": [0.0, 1.0]}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    told = run("plan", tmp_path / "recipe.json", "--json")
    assert json.loads(told.output)["modules"] == 7  # the first layer has weight 0


@pytest.mark.parametrize(("arguments", "code"), [
    (("build", "nope + nope2", "-o", "x"), "invalid_value"),
    (("build", "{a} +", "-o", "x"), "invalid_expression"),
    (("build", "wrong({a})", "-o", "x"), "unknown_method"),
    (("build", "{a}", "-o", "{a}"), "invalid_value"),
    (("build", "{a}", "-o", "x", "--rank", "many"), "invalid_value"),
    (("build", "{a}", "-o", "x", "--rank", "500"), "rank_too_large"),
    (("build", "{a}", "-o", "x", "--device", "cuda:9"), "backend_unavailable"),
    (("build", "{a}", "-o", "x", "--max-workspace", "1KiB"), "workspace_too_small"),
    (("plan", "{a}", "--dtype", "int8"), "invalid_recipe"),
])  # fmt: skip
def test_errors_are_a_code_and_a_sentence(folders, tmp_path, arguments, code, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*(argument.format(a=folders / "a") for argument in arguments))
    assert done.exit_code == 2
    assert done.stderr.strip().startswith(f"{code}: ")
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_methods_lists_the_table():
    done = CliRunner(env={"COLUMNS": "240"}).invoke(app, ["methods"])
    assert done.exit_code == 0
    # rich wraps to the terminal's width, so a name may be cut in a narrow one.
    assert all(name[:10] in done.output for name in METHODS)
