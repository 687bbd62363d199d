"""Adapters on a real CPU engine with every slot full: a batch changes no request's answer.

Each engine is a process of its own: this file, run as a program, with no server around it. float32 keeps rounding far
below the differences that a mistake would make; bfloat16, which processors with units for it serve, is held to its own
measure. Run by hand with ``AMALGAM_CPU_LORA=stock`` it shows two faults of vLLM
0.32's own path: the base model's answer is another one beside adapters; log-probabilities of prompts end the engine.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.adapter_factory import write_lora

pytestmark = pytest.mark.slow

PROMPTS = {
    "a0": "The capital of France is the city of",
    "a1": "Water boils at one hundred degrees, and it",
    None: "A list of the first five prime numbers: 2, 3,",
    "a2": "def fibonacci(n):\n    if n < 2:\n        return",
}
LONG = """Water boils at one hundred degrees at the level of the sea, and at less on a mountain, where the air is thin.
It freezes at zero degrees, and ice swims, because it takes more room than the water that it was. Rain falls from clouds
into rivers, rivers run into lakes and seas, and the sun lifts the water up again. Plants drink it with their roots, and
give it back with their leaves. Two thirds of a man are water, and he lives for three days without it. Salt makes it
heavier, cold makes it slower, and wind makes waves on it. Ships are built of iron, and swim all the same, because they
are hollow, and weigh less than the water in whose place they"""
PROMPTS_IN_BFLOAT16 = PROMPTS | {"a1": LONG}
"""One is longer than `TALL_ROWS`, and goes through units for bfloat16 where the processor has them."""
ADAPTERS = ("a0", "a1", "a2")
ANSWER_TOKENS = 6
REPLY = "@answer "
ENGINES = (("lora", "float32"), ("plain", "float32"), ("lora", "bfloat16"))

# Log-probabilities in float32: another batch shape sums the same products in another order, over 30 layers.
SAME = 1e-3
# An adapter of these weights moves the mean log-probability of a token by more than this.
DIFFERENT = 0.05
# In bfloat16 logits of 16 to 32 are an eighth apart, and in every layer some results come out as a neighbour where they
# are summed in another order. On AMX, between a batch and none: the base model 0.18 at most and 0.035 in the mean,
# adapters, which amplify it, 0.31 and 0.06. All are 0.045 from float32 in the mean; an adapter's effect is 1 and more.
# On AVX-512 BF16 an adapter's are the same bit by bit, and the base model's 0.01 apart, as all rows of a step with
# adapters are multiplied by one loop and all of another by the library.
SAME_IN_BFLOAT16 = 0.5
SAME_MEAN_IN_BFLOAT16 = 0.1


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """{run: {adapter or "base": [tokens, log-probabilities]}} of an engine with LoRA and of one without, in float32.

    Those of an engine with LoRA in bfloat16 are under ``bfloat16``.

    Of runs on prompts the log-probabilities begin with the prompt's. An engine that fails leaves the runs before that.
    """
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    model = ensure_base_model(Settings().storage.cache_dir, print)
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(ADAPTERS):
        write_lora(folder / name, rank=8, seed=seed, std=0.06)
    with ThreadPoolExecutor(2) as pool:
        lora, plain, half = pool.map(lambda engine: run_engine(model, folder, *engine), ENGINES)
    failures = [text for runs in (lora, plain, half) for text in runs["failures"]]
    return {**lora, **plain, "bfloat16": half, "failures": failures}


def run_engine(model: Path, folder: Path, kind: Any, dtype: str) -> Any:
    # One process per engine, with one thread each, so that the two start beside each other.
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, __file__, str(model), str(folder), kind, dtype],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    runs = {"failures": [done.stderr[-4000:]] if done.returncode else []}
    for line in done.stdout.splitlines():
        if line.startswith(REPLY):
            runs |= json.loads(line.removeprefix(REPLY))
    return runs


def test_all_engines_answer_to_the_end(answers: dict[str, Any]) -> None:
    assert not answers["failures"], answers["failures"][0]


def test_base_answers_equal_those_of_an_engine_without_lora(answers: dict[str, Any]) -> None:
    assert_same(answers["mixed"]["base"], answers["plain"]["base"])
    assert_same(answers["alone"]["base"], answers["plain"]["base"])


def test_base_prompts_weigh_as_in_an_engine_without_lora(answers: dict[str, Any]) -> None:
    assert_same(answers["mixed prompts"]["base"], answers["plain prompts"]["base"])


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_answers_in_a_mixed_batch_equal_those_alone(answers: dict[str, Any], name: str) -> None:
    assert_same(answers["mixed"][name], answers["alone"][name])
    assert_same(answers["mixed prompts"][name], answers["alone prompts"][name])


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_adapter_has_an_effect(answers: dict[str, Any], name: str) -> None:
    moved = apart(answers["alone prompts"][name], answers["plain prompts"][name])
    assert statistics.mean(moved) > DIFFERENT


@pytest.mark.parametrize("name", [*ADAPTERS, "base"])
def test_in_bfloat16_answers_in_a_mixed_batch_are_those_alone_but_for_what_bfloat16_rounds(
    answers: dict[str, Any], name: str
) -> None:
    alone, mixed = (answers["bfloat16"][run][name] for run in ("alone prompts", "mixed prompts"))
    assert max(apart(alone, mixed)) < SAME_IN_BFLOAT16
    assert statistics.mean(apart(alone, mixed)) < SAME_MEAN_IN_BFLOAT16


@pytest.mark.parametrize("name", [name for name in ADAPTERS if PROMPTS[name] == PROMPTS_IN_BFLOAT16[name]])
def test_in_bfloat16_an_adapters_effect_is_far_beyond_that(answers: dict[str, Any], name: str) -> None:
    for run in ("alone prompts", "mixed prompts"):
        moved = apart(answers["bfloat16"][run][name], answers["plain prompts"][name])
        assert statistics.mean(moved) > 5 * SAME_MEAN_IN_BFLOAT16


def apart(one: Any, other: Any) -> Any:
    """Differences of the log-probabilities of a prompt's tokens: of an answer's, two near ones may change places."""
    (answer, one), (other_answer, other) = one, other
    return [abs(a - b) for a, b in zip(one[: -len(answer)], other[: -len(other_answer)], strict=True)]


def assert_same(got: Tensor, want: Tensor) -> None:
    assert got[0] == want[0]
    assert got[1] == pytest.approx(want[1], abs=SAME)


def main(model: str, folder: str, kind: str, dtype: str) -> None:
    """Print the answers of one engine, a line of JSON for each run."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 16} if kind == "lora" else {}
    engine = LLM(
        model,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        enable_prefix_caching=False,
        **lora,
    )
    prompts_of = PROMPTS_IN_BFLOAT16 if dtype == "bfloat16" else PROMPTS
    requests: dict[str | None, Any] = {
        n: LoRARequest(n, i + 1, f"{folder}/{n}") if lora else None for i, n in enumerate(ADAPTERS)
    }

    def ask(names: Sequence[str | None], prompt_logprobs: Any) -> Any:
        sampling = SamplingParams(
            temperature=0, max_tokens=ANSWER_TOKENS, logprobs=0, prompt_logprobs=0 if prompt_logprobs else None
        )
        outputs = engine.generate(
            [prompts_of[name] for name in names],
            sampling,
            lora_request=[requests.get(name) for name in names],
            use_tqdm=False,
        )
        return {name or "base": scores(output) for name, output in zip(names, outputs, strict=True)}

    def scores(output: Any) -> Any:
        tokens = list(output.outputs[0].token_ids)
        prompt = zip(output.prompt_token_ids[1:], (output.prompt_logprobs or [None])[1:], strict=False)
        answer = zip(tokens, output.outputs[0].logprobs, strict=True)
        return tokens, [step[token].logprob for part in (prompt, answer) for token, step in part]

    # What vLLM's own operations cannot do at all comes last.
    for ending, prompts in (("", False), (" prompts", True)):
        if lora:
            tell(f"mixed{ending}", ask(list(PROMPTS), prompts))
            tell(f"alone{ending}", {k: v for name in PROMPTS for k, v in ask([name], prompts).items()})
        else:
            tell(f"plain{ending}", ask(list(PROMPTS), prompts))


def tell(run: str, scored: object) -> None:
    """One run's answers, for the process that started this one."""
    sys.stdout.write(f"{REPLY}{json.dumps({run: scored})}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
