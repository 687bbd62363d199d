"""Philox4x32-10: known answers, and one generator on numpy, torch and Triton."""

from typing import Any

import numpy as np
import pytest
import torch

from amalgam.kernels.philox import Stream, keep_threshold, philox_numpy, philox_torch, stable_id, words

KNOWN = [
    # (counter, key, words), the first two of Salmon et al.'s published vectors and the all-ones case.
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: Any, key: Any, expected: Any) -> None:
    plain = philox_numpy(np.array(counter, dtype=np.uint64).reshape(4, 1), key)
    assert tuple(int(word) for word in plain[:, 0]) == expected
    first, second, third, fourth = (torch.tensor([word]) for word in counter)
    lanes = philox_torch((first, second, third, fourth), key)
    assert tuple(int(lane) for lane in lanes) == expected


def test_words_are_addressed_by_element_alone() -> None:
    stream = Stream(seed=(7 << 32) | 5, adapter=stable_id("a"), tensor=stable_id("q_proj"))
    whole = words(stream, 0, 1000)
    for first, count in [(0, 1), (1, 3), (3, 7), (4, 4), (777, 223), (998, 2)]:
        assert torch.equal(words(stream, first, count), whole[first : first + count])
    block = torch.tensor([3])
    counter = (block, block * 0, block * 0 + stream.adapter, block * 0 + stream.tensor)
    assert [int(lane) for lane in philox_torch(counter, (5, 7))] == whole[12:16].tolist()


def test_far_elements_use_the_high_counter_word() -> None:
    stream = Stream(seed=1, adapter=2, tensor=3)
    near, far = words(stream, 0, 8), words(stream, 1 << 34, 8)
    assert not torch.equal(near, far)
    block = torch.tensor([0])
    assert int(far[0]) == int(philox_torch((block, block + 1, block + 2, block + 3), (1, 0))[0])


def test_every_part_of_the_address_matters() -> None:
    drawn = [words(Stream(s, a, t), 0, 64) for s, a, t in [(1, 2, 3), (1 << 32, 2, 3), (1, 3, 3), (1, 2, 4)]]
    for i, one in enumerate(drawn):
        assert int(one.min()) >= 0
        assert int(one.max()) < 1 << 32
        assert not any(torch.equal(one, other) for other in drawn[i + 1 :])


def test_keep_threshold_at_both_ends() -> None:
    assert keep_threshold(1.0) == 1 << 32
    assert keep_threshold(0.5) == 1 << 31
    drawn = words(Stream(9, 9, 9), 0, 100_000)
    assert abs(float((drawn < keep_threshold(0.3)).float().mean()) - 0.3) < 0.006


def test_ids_are_stable() -> None:
    assert stable_id("") == int.from_bytes(bytes.fromhex("e3b0c442"), "little")
