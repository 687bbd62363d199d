"""vLLM's own benchmark client as a library: one load against one server, its figures back."""

import argparse
import asyncio
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Load:
    """One burst of requests."""

    requests: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    models: Sequence[str]
    """What requests ask for, in turn; a list as long as the load says it for each one."""
    seed: int


@dataclass(frozen=True)
class Record:
    """One request that was answered."""

    model: str
    ttft_ms: float
    latency_ms: float
    """From sending it to its last token; waiting for its turn at the client does not count."""
    tokens: int


@dataclass(frozen=True)
class Figures:
    """What came of a load. Times in milliseconds."""

    output_tokens_per_s: float
    requests_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    tpot_p50_ms: float
    """Of the requests' means between their first token and the last."""
    e2e_p50_ms: float
    e2e_p99_ms: float
    failed: int
    records: tuple[Record, ...] = ()
    """In the order of the load; failed requests are left out."""


def run_load(url: str, tokenizer: str, load: Load, endpoint: str = "/v1/completions") -> Figures:
    """Send ``load`` and wait for its end; streamed, temperature 0, ignoring the end-of-text token."""
    from vllm.benchmarks.serve import add_cli_args, main_async

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    chat = endpoint.endswith("chat/completions")
    args = parser.parse_args(
        [
            *("--backend", "openai-chat" if chat else "openai", "--base-url", url, "--endpoint", endpoint),
            *("--model", "smollm2", "--tokenizer", tokenizer, "--dataset-name", "random", "--ignore-eos"),
            *("--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)),
            *("--num-prompts", str(load.requests), "--max-concurrency", str(load.concurrency)),
            *("--seed", str(load.seed), "--temperature", "0", "--disable-tqdm"),
            *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"),
            *("--lora-modules", *load.models),
            *("--lora-assignment", "round-robin", "--save-detailed"),
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        result: dict[str, Any] = asyncio.run(main_async(args))
    return Figures(
        output_tokens_per_s=result["output_throughput"],
        requests_per_s=result["request_throughput"],
        ttft_p50_ms=result["p50_ttft_ms"],
        ttft_p99_ms=result["p99_ttft_ms"],
        itl_p50_ms=result["p50_itl_ms"],
        itl_p99_ms=result["p99_itl_ms"],
        tpot_p50_ms=result["p50_tpot_ms"],
        e2e_p50_ms=result["p50_e2el_ms"],
        e2e_p99_ms=result["p99_e2el_ms"],
        failed=load.requests - result["completed"],
        records=records_of(load, result),
    )


def records_of(load: Load, result: Mapping[str, Sequence[Any]]) -> tuple[Record, ...]:
    """The client's columns, seconds, as rows."""
    columns = zip(
        *(result[name] for name in ("ttfts", "latencies", "output_lens", "errors")), range(load.requests), strict=True
    )
    return tuple(
        Record(load.models[number % len(load.models)], ttft * 1e3, latency * 1e3, tokens)
        for ttft, latency, tokens, error, number in columns
        if not error and tokens
    )
