"""`amalgam doctor MODEL ADAPTER…`: what fits is told from what does not before anything is started."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amalgam.cli import doctor_model
from amalgam.cli.doctor_model import Served, ask_vllm, check_fit
from amalgam.settings import Settings
from tests.models.packings import quantise
from tests.models.pictures import demo_tokenizer_files
from tests.models.tiny_models import build, write_adapter, write_model


def said(model: Path, *adapters: Path) -> list[tuple[str, str]]:
    return [(found.verdict, found.text) for found in check_fit(Settings(), model, adapters)]


def test_adapters_that_fit_are_told_from_those_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: Served("cpu", known=True, adapted=True))
    write_model("llama", tmp_path / "base")
    write_adapter(build("llama"), tmp_path / "fits", ["q_proj"])
    write_adapter(build("gpt2"), tmp_path / "other", ["c_attn"])
    found = said(tmp_path / "base", tmp_path / "fits", tmp_path / "other", tmp_path / "nowhere")
    assert [verdict for verdict, _ in found] == ["ok", "ok", "ok", "error", "error"]
    assert "16 weight matrices, plain" in found[0][1]
    assert "2 modules, rank 4" in found[2][1]
    assert "unknown_modules" in found[3][1]


@pytest.mark.parametrize(
    ("served", "verdict", "words"),
    [
        (Served("cpu", known=False, adapted=False), "error", "no class"),
        (Served("cpu", known=True, adapted=False), "error", "takes no LoRA"),
        (Served("cuda", known=True, adapted=True), "ok", "takes LoRA on cuda"),
    ],
)
def test_what_vllm_cannot_serve_is_an_error(
    served: Served, verdict: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: served)
    write_model("llama", tmp_path)
    found = said(tmp_path)
    assert found[1][0] == verdict
    assert words in found[1][1]


@pytest.mark.parametrize(
    ("device", "units", "dtype", "gib", "has_copies"),
    [
        ("cpu", "vectors", "bfloat16", None, True),
        ("cpu", "tiles", "bfloat16", 1, True),
        ("cpu", "vectors", "bfloat16", 0, False),
        ("cpu", "vectors", "float32", None, False),
        ("cpu", None, "bfloat16", None, False),
        ("cuda", "vectors", "bfloat16", None, False),
    ],
)
def test_second_copies_of_weights_are_counted_where_they_are_made(
    device: str,
    units: str | None,
    dtype: str,
    gib: float | None,
    has_copies: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: Served(device, known=True, adapted=True))
    monkeypatch.setattr(doctor_model, "one_pass_units", lambda _: units)
    if gib is not None:
        monkeypatch.setenv("AMALGAM_CPU_COPIES_GIB", str(gib))
    write_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    found = [text for verdict, text in said(tmp_path) if "second copies" in text]
    assert len(found) == has_copies
    assert all("MiB more" in text and "AMALGAM_CPU_COPIES_GIB" in text for text in found)


@pytest.mark.parametrize(
    ("method", "verdict"), [("fp8", "error"), ("bitsandbytes", "error"), ("gptq", "ok"), ("awq", "ok")]
)
def test_how_a_base_is_quantised_is_judged_as_the_server_does(
    method: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: Served("cpu", known=True, adapted=True))
    write_model("llama", tmp_path)
    quantise(tmp_path, method)
    for has_kernels in (True, False):
        monkeypatch.setattr(doctor_model, "multiplies_words", lambda has_kernels=has_kernels: has_kernels)
        assert said(tmp_path)[1][0] == (verdict if has_kernels else "error")
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: Served("cuda", known=True, adapted=True))
    assert said(tmp_path)[1][0] == "ok"


def test_a_base_that_sees_needs_torchvision_and_its_towers_are_not_adapted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: Served("cpu", known=True, adapted=True))
    write_model("llava", tmp_path / "base")
    write_adapter(build("llava"), tmp_path / "all", "all-linear")
    for found, verdict in ((None, "error"), (object(), "ok")):
        monkeypatch.setattr(doctor_model, "find_spec", lambda _, found=found: found)
        words = said(tmp_path / "base", tmp_path / "all")
        assert words[1][0] == verdict
        assert "unsupported_modules" in words[2][1]


@pytest.mark.parametrize(("ends", "verdict"), [({"embed_tokens", "lm_head"}, "warning"), (set(), "error")])
def test_an_adapter_of_the_output_layer_fits_where_vllms_class_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: set[str], verdict: str
) -> None:
    served = Served("cpu", known=True, adapted=True, ends=frozenset(ends))
    monkeypatch.setattr(doctor_model, "ask_vllm", lambda _: served)
    write_model("mistral", tmp_path / "base")
    write_adapter(build("mistral"), tmp_path / "head", ["q_proj", "lm_head"])
    # PEFT writes the base model's own weight beside the factors, which is worth a warning.
    found, words = said(tmp_path / "base", tmp_path / "head")[2]
    assert found == verdict
    assert ("'lm_head' is a module that vLLM's class" in words) == (verdict == "error")


def test_a_base_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"no")
    ((verdict, words),) = said(tmp_path)
    assert verdict == "error"
    assert "model.safetensors" in words


@pytest.mark.slow
def test_vllm_itself_says_which_architectures_take_lora(tmp_path: Path) -> None:
    def of(name: str) -> Served:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
        found = ask_vllm(tmp_path)
        assert found is not None
        return found

    llama, gpt2, unknown = of("LlamaForCausalLM"), of("GPT2LMHeadModel"), of("NoSuchModel")
    assert (llama.known, llama.adapted) == (True, True)
    assert "lm_head" in llama.ends
    assert (gpt2.known, gpt2.adapted) == (True, False)
    assert unknown.known is False


def changed(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def spoilt_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def spoilt_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (changed(), None),
        (changed(model_type="foo"), "model type `foo`"),
        (changed(num_attention_heads=3), "not a multiple"),
        (changed(head_dim=24), "24 entries a head"),
        (changed(max_position_embeddings=0), "max_model_len"),
        (changed(quantization_config={"quant_method": "foo"}), "Unknown quantization method: foo"),
        (spoilt_tokenizer, "its tokenizer cannot be read"),
    ],
)
def test_vllm_reads_the_configuration_as_when_it_starts(
    tmp_path: Path, harm: Callable[[Path], None], words: str | None
) -> None:
    write_model("llama", tmp_path)
    demo_tokenizer_files(tmp_path)
    # Its own heads have 16 entries.
    changed(head_dim=32)(tmp_path)
    harm(tmp_path)
    found = said(tmp_path)
    errors = [text for verdict, text in found if verdict == "error"]
    assert len(errors) == (0 if words is None else 1), errors
    assert words is None or (errors[0].startswith("It cannot be served here: ") and words in errors[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "words"), [(without_template, "has no chat template"), (spoilt_template, "cannot be read: unexpected")]
)
def test_a_base_that_takes_no_conversations_is_told(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    write_model("llama", tmp_path)
    demo_tokenizer_files(tmp_path)
    changed(head_dim=32)(tmp_path)
    harm(tmp_path)
    [text] = [text for verdict, text in said(tmp_path) if verdict == "warning"]
    assert words in text
    assert "--chat-template FILE" in text
