"""Adapters on a real CPU engine with every slot full: a batch changes no request's answer.

Each engine is a process of its own: this file, run as a program, with no server around it. float32 keeps rounding far
below the differences that a mistake would make. Run by hand with ``AMALGAM_CPU_LORA=stock`` it shows two faults of vLLM
0.32's own path: the base model's answer is another one beside adapters; log-probabilities of prompts end the engine.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.adapter_factory import write_lora

PROMPTS = {
    "a0": "The capital of France is the city of",
    "a1": "Water boils at one hundred degrees, and it",
    None: "A list of the first five prime numbers: 2, 3,",
    "a2": "def fibonacci(n):\n    if n < 2:\n        return",
}
ADAPTERS = ("a0", "a1", "a2")
ANSWER_TOKENS = 6
REPLY = "@answer "

# Log-probabilities in float32: another batch shape sums the same products in another order, over 30 layers.
SAME = 1e-3
# An adapter of these weights moves the mean log-probability of a token by more than this.
DIFFERENT = 0.05


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """{run: {adapter or "base": [tokens, log-probabilities]}} of an engine with LoRA and of one without.

    Of runs on prompts the log-probabilities begin with the prompt's. An engine that fails leaves the runs before that.
    """
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    model = ensure_base_model(Settings().cache_dir, print)
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(ADAPTERS):
        write_lora(folder / name, rank=8, seed=seed, std=0.06)
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda kind: run_engine(model, folder, kind), ("lora", "plain")))
    return {**runs[0], **runs[1], "failures": runs[0]["failures"] + runs[1]["failures"]}


def run_engine(model, folder, kind):
    # One process per engine, with one thread each, so that the two start beside each other.
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, __file__, str(model), str(folder), kind],
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


def test_both_engines_answer_to_the_end(answers):
    assert not answers["failures"], answers["failures"][0]


def test_base_answers_equal_those_of_an_engine_without_lora(answers):
    assert_same(answers["mixed"]["base"], answers["plain"]["base"])
    assert_same(answers["alone"]["base"], answers["plain"]["base"])


def test_base_prompts_weigh_as_in_an_engine_without_lora(answers):
    assert_same(answers["mixed prompts"]["base"], answers["plain prompts"]["base"])


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_answers_in_a_mixed_batch_equal_those_alone(answers, name):
    assert_same(answers["mixed"][name], answers["alone"][name])
    assert_same(answers["mixed prompts"][name], answers["alone prompts"][name])


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_adapter_has_an_effect(answers, name):
    _, with_adapter = answers["alone prompts"][name]
    _, without = answers["plain prompts"][name]
    prompt_tokens = len(with_adapter) - ANSWER_TOKENS
    moved = [abs(a - b) for a, b in zip(with_adapter[:prompt_tokens], without[:prompt_tokens], strict=True)]
    assert sum(moved) / len(moved) > DIFFERENT


def assert_same(got, want):
    assert got[0] == want[0]
    assert got[1] == pytest.approx(want[1], abs=SAME)


def main(model: str, folder: str, kind: str) -> None:
    """Print the answers of one engine, a line of JSON for each run."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 16} if kind == "lora" else {}
    engine = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        enable_prefix_caching=False,
        **lora,
    )
    requests = {n: LoRARequest(n, i + 1, f"{folder}/{n}") if lora else None for i, n in enumerate(ADAPTERS)}

    def ask(names, prompt_logprobs):
        sampling = SamplingParams(
            temperature=0, max_tokens=ANSWER_TOKENS, logprobs=0, prompt_logprobs=0 if prompt_logprobs else None
        )
        outputs = engine.generate(
            [PROMPTS[name] for name in names],
            sampling,
            lora_request=[requests.get(name) for name in names],
            use_tqdm=False,
        )
        return {name or "base": scores(output) for name, output in zip(names, outputs, strict=True)}

    def scores(output):
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
