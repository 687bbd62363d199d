"""The reason of a failed start, out of errors as vLLM words them."""

import logging
import logging.config
import multiprocessing
import re
from collections.abc import Iterator

import pytest

from amalgam.engine.start_reason import CauseTeller, first_cause, start_reason

PYDANTIC = """1 validation error for ModelConfig
  Value error, Model architectures ['Foo'] are not supported for now. [type=value_error, input_value=ArgsKwargs(())]
    For further information visit https://errors.pydantic.dev/2.12/v/value_error"""


LINK = "    For further information visit https://errors.pydantic.dev/2.12/v/less_than"
SEVERAL = f"""3 validation errors for Config
slots
  Input should be less than 5 [type=less_than, input_value=7, input_type=int]
{LINK}
overrides.dict[str,any]
  Input should be a valid dictionary [type=dict_type, input_value='[type=x', input_type=str]
{LINK}
overrides.callable
  Input should be callable [type=callable_type, input_value='[type=x', input_type=str]
{LINK}"""
OVER_LINES = (
    f"1 validation error for Config\n  Assertion failed, it is\ntoo much. Take 6. [type=assertion_error]\n{LINK}"
)
OF_A_CONFIG = "Class validation error for validator 'validate_heads':\n    ValueError: Heads do not divide."


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError(SEVERAL), "slots: must be less than 5; overrides: must be a valid dictionary"),
        (ValueError(f"--config: {OVER_LINES}"), "--config: it is too much. Take 6"),
        (ValueError(OF_A_CONFIG), "Heads do not divide"),
        (KeyError("Parser 'x' not found."), "Parser 'x' not found"),
        (TypeError("Error: --a requires --b"), "--a requires --b"),
        (ValueError(PYDANTIC), "Model architectures ['Foo'] are not supported for now"),
        (ValueError("max_model_len is too large.\nDecrease it."), "max_model_len is too large. Decrease it"),
        (TimeoutError(), "TimeoutError"),
        (
            RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}"),
            "a process of it ended, for the reason that its log lines above name",
        ),
    ],
)
def test_a_sentence(error: Exception, reason: str) -> None:
    assert start_reason(error) == reason


def test_one_without_words_is_told_by_its_place() -> None:
    def fails() -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as caught:
        fails()
    assert re.fullmatch(r"AssertionError in test_start_reason\.py, line \d+", start_reason(caught.value))


def test_of_a_long_one_whole_sentences_are_kept() -> None:
    known = ", ".join(f"'Architecture{number}ForCausalLM'" for number in range(100))
    error = ValueError(f"Model architectures ['Foo'] are not supported for now. Supported architectures: [{known}]")
    assert start_reason(error) == "Model architectures ['Foo'] are not supported for now"
    error = ValueError(f"Unknown method: foo. Must be one of [{known}]. Set another one.")
    assert start_reason(error) == "Unknown method: foo"


def test_a_long_one_is_cut() -> None:
    assert len(start_reason(ValueError("word " * 1000))) < 410


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """One of vLLM's; who hears what it logs is forgotten afterwards."""
    made = logging.getLogRecordFactory()
    yield logging.getLogger("vllm.of_a_test")
    logging.setLogRecordFactory(made)


def test_the_first_cause_that_a_process_logs_is_told_to_another(log: logging.Logger) -> None:
    told, teller = multiprocessing.Pipe(duplex=False)
    CauseTeller(teller).listen()
    # As vLLM does once more when a core or a worker of it begins: handlers of its loggers are gone.
    again = {"version": 1, "disable_existing_loggers": False, "loggers": {"vllm.of_a_test": {"handlers": []}}}
    logging.config.dictConfig(again)
    assert first_cause(told) is None
    log.error("words alone are no cause")
    log.warning("what is got over is none", exc_info=ValueError("got over"))
    logging.getLogger("somebody").error("nor is another's", exc_info=ValueError("another's"))
    for cause in ("the weights end early", "a child failed"):
        try:
            raise ValueError(cause)
        except ValueError:
            log.exception("it failed")
    found = first_cause(told)
    assert found == "the weights end early"
    assert start_reason(RuntimeError("Failed core proc(s): {}"), found) == found
    assert start_reason(RuntimeError("of its own"), cause) == "of its own"
    assert first_cause(told) is None
    told.close()
    teller.close()


def test_a_process_tells_one_cause_and_never_waits_for_who_should_read_it(log: logging.Logger) -> None:
    told, teller = multiprocessing.Pipe(duplex=False)
    CauseTeller(teller).listen()
    for number in range(10_000):
        try:
            raise ValueError(f"error {number} " + "x" * 400)
        except ValueError:
            log.exception("again")
    cause = first_cause(told)
    assert cause is not None
    assert cause.startswith("error 0 ")
    told.close()
    teller.close()
