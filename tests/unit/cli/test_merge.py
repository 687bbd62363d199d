"""`amalgam merge`: what a person types, and what comes back."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from amalgam.cli import merge as cli_merge
from amalgam.cli.merge import app
from amalgam.cli.merge_report import labels
from amalgam.cli.recipe_options import DEFAULT_MAX_RANK
from amalgam.merge.methods import METHODS
from amalgam.settings.groups import EngineSettings
from amalgam.store.peft_folder import read_peft_folder
from tests.adapter_factory import write_lora

SMALL: dict[str, Any] = {"layers": 2, "hidden": 24, "heads_kv_dim": 8, "intermediate": 40}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("adapters")
    write_lora(root / "a", rank=4, seed=1, **SMALL)
    write_lora(root / "b", rank=2, seed=2, modules=("q_proj", "up_proj"), **SMALL)
    return root


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_build_report_and_a_merge_of_the_merge(folders: Any, tmp_path: Path) -> None:
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
    assert "not fitted to prompts" in text
    fit = {"method": "iteris", "by": "kept", "prompts_digest": "d", "seed": 0, "max_tokens": 9, "budget_s": 9}
    (out / "lineage.json").write_text(json.dumps(lineage | {"fit": fit | {"tokens": 321}}))
    assert run("report", out, "--out", page).exit_code == 0
    assert "each input to what it reads, 321 tokens in all" in page.read_text()
    again = run(
        "build", f"{out} + {folders}/a", "-o", tmp_path / "deeper", "--rank", "energy=0.9", "--dtype", "float32"
    )
    assert again.exit_code == 0, again.output


def test_plan_tells_without_writing(folders: Any, tmp_path: Path) -> None:
    told = run("plan", f"{folders}/a + 0.5*{folders}/b", "--json")
    assert told.exit_code == 0, told.output
    facts = json.loads(told.output)
    assert (facts["rank"], facts["modules"], facts["partial_modules"]) == (6, 14, 10)
    assert len(facts["diagnostics"]) == 14
    assert run("plan", f"{folders}/a").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_file_is_as_good_as_an_expression(folders: Any, tmp_path: Path) -> None:
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
    (("plan", "{a}", "--dtype", "int8"), "invalid_value"),
    (("build", "{a}", "-o", "x", "--dtype", "bf16"), "invalid_value"),
    (("build", "{a}", "-o", "x", "--rank", "0"), "invalid_value"),
    (("build", "{a}", "-o", "x", "--rank", "-1"), "invalid_value"),
    (("build", "{a}", "-o", "x", "--rank", "energy=2"), "invalid_value"),
    (("build", "{a}", "-o", "x", "--seed", "-1"), "invalid_value"),
    (("build", "{a}", "-o", "/proc/nothing/x"), "invalid_value"),
    (("build", "{a}", "-o", "{a}/adapter_config.json"), "invalid_value"),
    (("build", "missing.json", "-o", "x"), "invalid_value"),
    (("build", "{a}/adapter_config.json", "-o", "x"), "invalid_value"),
    (("report", "{a}"), "invalid_value"),
])  # fmt: skip
def test_errors_are_a_code_and_a_sentence(
    folders: Any, tmp_path: Path, arguments: tuple[Any, ...], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*(argument.format(a=folders / "a") for argument in arguments))
    assert done.exit_code == 2
    assert done.stderr.strip().startswith(f"{code}: ")
    assert "Traceback" not in done.output
    assert not re.search("pydantic|validation error|Errno|huggingface", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_the_folder_one_stands_in(folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("build", folders / "a", "-o", tmp_path / "made").exit_code == 0
    monkeypatch.chdir(tmp_path / "made")
    done = run("report", ".")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "made-report.html").is_file()


def test_a_plan_says_exact_rank_planned_rank_and_energy(folders: Any) -> None:
    told = json.loads(run("plan", folders / "a", "--rank", "2", "--json").output)
    assert (told["exact_rank"], told["rank"]) == (4, 2)
    assert 0 < told["energy_kept"] < 1
    assert any("are cut" in text for text in told["warnings"])


def test_the_command_lines_largest_rank_is_the_servers() -> None:
    assert EngineSettings().max_lora_rank == DEFAULT_MAX_RANK
    for command in (cli_merge.build, cli_merge.plan):
        assert inspect.signature(command).parameters["max_rank"].default is DEFAULT_MAX_RANK


def test_twelve_inputs_fit_eighty_columns(tmp_path: Path) -> None:
    """From folders of one name, whose paths differ before it."""
    made = [write_lora(tmp_path / f"a-run-with-a-long-name-{i:02}" / "out", rank=1, seed=i, **SMALL) for i in range(12)]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["plan", " + ".join(map(str, made))])
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stdout.splitlines() if "name-" in line]
    assert len(rows) == 12
    assert all(f"name-{i:02}/out" in row for i, row in enumerate(rows))
    assert all(" with " in row for row in rows)


def test_a_report_on_twelve_inputs_from_folders_of_one_name_can_be_read(tmp_path: Path) -> None:
    """Every input has a label of its own in every chart, and nothing stands outside of its chart or of the page."""
    made = [write_lora(tmp_path / f"run-{i:02}" / "deep" / "out", rank=1, seed=i, **SMALL) for i in range(12)]
    assert run("build", " + ".join(map(str, made)), "-o", tmp_path / "x").exit_code == 0
    assert run("report", tmp_path / "x", "-o", tmp_path / "x.html").exit_code == 0
    page = (tmp_path / "x.html").read_text()
    charts = re.findall(r"<svg .*?</svg>", page)
    for title in ("By input", "Norm of each input"):
        (chart,) = [one for one in charts if f">{title}" in one]
        for i in range(12):
            assert chart.count(f">{i + 1} run-{i:02}<") == 1, (title, i)
    strokes = re.findall(r"<polyline [^>]*(stroke=.*?)/>", charts[-1])
    assert len(set(strokes)) == len(strokes) == 13
    for chart in charts:
        sizes = re.search(r'width="(\d+)" height="(\d+)"', chart)
        assert sizes is not None
        width, height = map(int, sizes.groups())
        for x, y, kind, text in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="(\w)">([^<]*)', chart):
            # Letters of the two sizes take 6 and 8 at most.
            size = (8 if kind == "t" else 6) * len(text)
            left = float(x) - {"e": size, "m": size / 2}.get(kind, 0)
            assert left >= -1, (text, chart[:200])
            assert left + size <= width + 1, (text, chart[:200])
            assert float(y) <= height
    inputs, cosines = re.findall(r"<table[^>]*>((?:(?!<table).)*?)</table>", page)[1:3]
    assert (inputs.count("<tr>"), inputs.count("<th>"), cosines.count("<td>")) == (13, 7, 144)
    assert "no pair is kept module by module" in page


def test_labels_leave_out_what_all_names_share() -> None:
    assert labels(["/a/b/x", "/a/c/x"]) == ["1 b", "2 c"]
    assert labels(["/a/x", "/a/x/y"]) == ["1 x", "2 x/y"]
    assert labels(["one@1", "two@1"]) == ["1 one@1", "2 two@1"]
    assert labels(["/a/b"]) == ["1 /a/b"]


def test_methods_lists_the_table() -> None:
    done = CliRunner(env={"COLUMNS": "240"}).invoke(app, ["methods"])
    assert done.exit_code == 0
    # rich wraps to the terminal's width, so a name may be cut in a narrow one.
    assert all(name[:10] in done.output for name in METHODS)
