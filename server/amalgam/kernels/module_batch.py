"""Many modules of one shape with the same inputs, as the kernels for CUDA devices take them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amalgam.kernels.philox import Stream
from amalgam.kernels.tiles import TileInput


@dataclass(frozen=True, slots=True)
class ModuleBatch:
    """n modules of one shape with the same T inputs, on one CUDA device.

    Shapes: ``B`` [n, out, R] with the scales in it, ``A`` [n, R, in], float32, or bfloat16 where that holds them all;
    ``weights`` [n, T], float32; ``tensors`` [n], int64, the modules' ids; all contiguous.
    """

    B: Tensor
    A: Tensor
    begins: tuple[int, ...]
    """Each input's columns begin here; R at the end."""
    weights: Tensor
    tensors: Tensor
    adapters: tuple[int, ...]
    """It has the id of each input."""
    seed: int
    exact: int = 0
    """Bit t says that input t passes through bfloat16 unchanged, so that tensor cores give exact products."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, out, in)."""
        return self.B.shape[0], self.B.shape[1], self.A.shape[2]

    @property
    def padded(self) -> Any:
        """Columns of the widest input, as the kernels take them: a power of two, at least 16."""
        widest = max(end - begin for begin, end in itertools.pairwise(self.begins))
        return max(16, 1 << (widest - 1).bit_length())

    def rows(self, some: slice) -> "ModuleBatch":
        """A part of the modules."""
        return replace(
            self, B=self.B[some], A=self.A[some], weights=self.weights[some], tensors=self.tensors[some]
        )  # fmt: skip

    def checked(self) -> "ModuleBatch":
        """The same with ``exact`` filled in, by one look at all factors; in bfloat16 where all pass through it.

        Half as much is read by every tile then, and nothing is converted there.
        """
        if not self.B.is_cuda:
            return self
        short_b, short_a = self.B.bfloat16(), self.A.bfloat16()
        same_b = (short_b.float() == self.B).all(dim=1).all(dim=0)
        same_a = (short_a.float() == self.A).all(dim=2).all(dim=0)
        both = (same_b & same_a).tolist()
        spans = itertools.pairwise(self.begins)
        exact = sum(all(both[begin:end]) << t for t, (begin, end) in enumerate(spans))
        if all(both):
            return replace(self, B=short_b, A=short_a, exact=exact)
        return replace(self, exact=exact)

    def keys(self) -> Tensor:
        """Low and high word of the seed, [2], int64."""
        return torch.tensor(Stream(self.seed, 0, 0).key, dtype=torch.int64, device=self.B.device)

    def ids(self) -> Tensor:
        """The inputs' ids, [T], int64."""
        return torch.tensor(self.adapters, dtype=torch.int64, device=self.B.device)


def batch_of_one(inputs: Sequence[TileInput]) -> ModuleBatch:
    """One module as a batch."""
    device, begins = inputs[0].B.device, [0]
    for part in inputs:
        begins.append(begins[-1] + part.A.shape[0])
    return ModuleBatch(
        B=torch.cat([part.B for part in inputs], dim=1)[None].contiguous(),
        A=torch.cat([part.A for part in inputs], dim=0)[None].contiguous(),
        begins=tuple(begins),
        weights=torch.tensor([[part.weight for part in inputs]], dtype=torch.float32, device=device),
        tensors=torch.tensor([inputs[0].stream.tensor], dtype=torch.int64, device=device),
        adapters=tuple(part.stream.adapter for part in inputs),
        seed=inputs[0].stream.seed,
    ).checked()
