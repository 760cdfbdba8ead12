"""Theta0 and what leads away from it: the exact way back, and directions, with their sizes and products.

A direction is one tensor a parameter, laid out as it is, in the order of `LanguageModel.parameters()`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.processes.collectives import summed
from teachdiag.diagnostics.processes.parameters import are_sharded, laid_out_like, local

Direction = list[Tensor]
_ALIGNED = 64  # bytes, to which torch aligns its own memory, or to more
_BLOCK = 2**20  # numbers of a parameter that are widened at a time for its bit sums,
_LARGE = 2**26  # and for its distance from theta0
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers by how many bytes they have


class Theta0:
    """The student's weights at the start, never written to; what leaves them has memory of its own while it is away.

    Parameters point either at theta0's own memory or at that, so that the way back is exact and costs nothing. Shards
    cannot point elsewhere: what leaves theta0 works on them, and theta0 is kept beside them, to be copied back.
    """

    def __init__(self, student: LanguageModel) -> None:
        """Take the student's present weights as theta0."""
        self._student = student
        self._parameters = [p for _, p in student.parameters()]
        self._sharded = student.sharded
        self._weights = [p.clone() for p in self._present()] if self._sharded else self._present()
        self._bit_sums = bit_sums(student)

    @property
    def mapped(self) -> bool:
        """Whether weights lie in a mapped file, as float32 ones on a CPU may.

        There they have no memory of their own, and the file's alignment, on which last digits of products hang.
        """
        return any(weight.data_ptr() % _ALIGNED for weight in self._weights)

    def leave(self, weights: Iterable[Tensor] | None = None) -> None:
        """Move the student to a copy, to be changed in place, of given weights laid out as its own, or of theta0."""
        given = self._weights if weights is None else weights
        for parameter, weight in zip(self.leaving(filled=False), given, strict=True):
            local(parameter.data).copy_(local(weight))

    def leaving(self, *, filled: bool = True) -> Iterator[Tensor]:
        """Yield every parameter in turn, to be changed in place; one that is at theta0 is moved to a copy of it first.

        Unless `filled`, what it is moved to is to be filled.
        """
        for parameter, weight in zip(self._parameters, self._weights, strict=True):
            if not self._sharded and parameter.data_ptr() == weight.data_ptr():
                parameter.data = weight.clone() if filled else torch.empty_like(weight)
            yield parameter
        self._student.head.follow()

    def displace(self, direction: Direction, scale: float) -> None:
        """Move the student to theta0 + scale * direction."""
        for parameter, weight, along in zip(self.leaving(filled=False), self._weights, direction, strict=True):
            torch.add(weight, local(along), alpha=scale, out=local(parameter.data))

    def stretch(self, factor: float) -> None:
        """Move the student from theta to theta0 + factor * (theta - theta0)."""
        for present, weight in zip(self._present(), self._weights, strict=True):
            torch.lerp(weight, present, factor, out=present)
        self._student.head.follow()

    def displacement(self) -> Direction:
        """Return theta - theta0 for the present theta, which is not sharded."""
        return [p - w for p, w in zip(self._present(), self._weights, strict=True)]

    def distance(self) -> float:
        """Euclidean norm of theta - theta0, summed in float64."""
        squares = [_squared_distances(p, w) for p, w in zip(self._present(), self._weights, strict=True)]
        read = iter(torch.cat(squares).tolist())  # at once: a GPU waits for who reads
        return math.sqrt(_over_shards(sum(sum(islice(read, len(part))) for part in squares), self._parameters))

    def restore(self) -> None:
        """Put theta0 back, without gradients."""
        for parameter, weight in zip(self._parameters, self._weights, strict=True):
            if self._sharded:
                local(parameter.data).copy_(weight)
            else:
                parameter.data = weight
            parameter.grad = None
        self._student.head.follow()

    def verify(self) -> None:
        """Assert that the student is at theta0, bit for bit.

        Raises:
            RuntimeError: it is not.
        """
        if not torch.equal(bit_sums(self._student), self._bit_sums):
            raise RuntimeError("theta0 was not restored bit for bit")

    def _present(self) -> list[Tensor]:
        return [local(p.data) for p in self._parameters]


@torch.no_grad()
def bit_sums(student: LanguageModel) -> Tensor:
    """Sums over the bits of every parameter, that change with a bit of it; of sharded ones, of this process's part.

    Read as whole numbers b_i, sum_i b_i and sum_i (2 i + 1) b_i modulo 2^64: exact in any order, so that they are taken
    where the parameter is. Shape (parameters, 2), int64, on the CPU.
    """
    return torch.stack([_bit_sums(local(parameter)) for _, parameter in student.parameters()]).cpu()


def _bit_sums(part: Tensor) -> Tensor:
    sums = torch.zeros(2, dtype=torch.int64, device=part.device)
    for number, block in enumerate(torch.split(part.flatten(), _BLOCK)):
        bits = block.view(_BITS[block.element_size()]).long()
        place = torch.arange(number * _BLOCK, number * _BLOCK + len(bits), device=part.device)
        sums += torch.stack([bits.sum(), (bits * (2 * place + 1)).sum()])
    return sums


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of one block after another, shape (blocks,), float64."""
    blocks = zip(torch.split(a.flatten(), _LARGE), torch.split(b.flatten(), _LARGE), strict=True)
    return torch.stack([(x - y).double().square_().sum() for x, y in blocks])


def inner(a: Direction, b: Direction) -> float:
    """Inner product of two directions: rows in float32, their sum in float64."""
    rows = ((_rows(x), _rows(y)) for x, y in zip(a, b, strict=True))
    products = torch.stack([torch.linalg.vecdot(x, y).double().sum() for x, y in rows])
    return _over_shards(sum(products.tolist()), a)  # read at once: a GPU waits for who reads


def random_direction(student: LanguageModel, seed: int) -> Direction:
    """Gaussian direction over all parameters, the same on every device, and however they are sharded."""
    generator = torch.Generator().manual_seed(seed)
    return [laid_out_like(p, torch.randn(p.shape, generator=generator)) for _, p in student.parameters()]


def _rows(part: Tensor) -> Tensor:
    """The rows of a parameter that are here, if any: shape (rows, last axis)."""
    return local(part)[None, None].flatten(0, -2)


def _over_shards(part: float, parameters: Sequence[Tensor]) -> float:
    """Return a sum over the elements of all parameters, from this process's: of whole parameters these are all."""
    return summed(part) if are_sharded(parameters) else part
