"""Theta0 and what leads away from it: the exact way back, and directions, with their sizes and products.

A direction is one tensor a parameter, in the order of `LanguageModel.parameters()`.
"""

import hashlib
import math

import torch
from torch import Tensor

from teachdiag.diagnostics.models import LanguageModel

Direction = list[Tensor]


class Theta0:
    """The student's weights at the start, never written to; whatever leaves them works on a copy.

    Parameters point either at theta0's own memory or at the copy's, so the way back is exact and costs nothing.
    """

    def __init__(self, student: LanguageModel) -> None:
        """Take the student's present weights as theta0."""
        self._student = student
        self._parameters = [p for _, p in student.parameters()]
        self._weights = [p.data for p in self._parameters]
        self._copy: list[Tensor] = []
        self._digest = parameter_digest(student)

    def leave(self) -> None:
        """Point the parameters at a fresh copy of theta0, which may be changed in place."""
        for parameter, copy, weight in zip(self._parameters, self._room(), self._weights, strict=True):
            parameter.data = copy.copy_(weight)

    def displace(self, direction: Direction, scale: float) -> None:
        """Move the student to theta0 + scale * direction."""
        for parameter, copy, weight, along in zip(
            self._parameters, self._room(), self._weights, direction, strict=True
        ):
            parameter.data = torch.add(weight, along, alpha=scale, out=copy)

    def stretch(self, factor: float) -> None:
        """Move the student from theta to theta0 + factor * (theta - theta0)."""
        for parameter, weight in zip(self._parameters, self._weights, strict=True):
            torch.lerp(weight, parameter.data, factor, out=parameter.data)

    def displacement(self) -> Direction:
        """Return theta - theta0 for the present theta."""
        return [p.data - w for p, w in zip(self._parameters, self._weights, strict=True)]

    def distance(self) -> float:
        """Euclidean norm of theta - theta0, summed in float64."""
        return math.sqrt(
            sum(
                float((p.data - w).double().square().sum())
                for p, w in zip(self._parameters, self._weights, strict=True)
            )
        )

    def restore(self) -> None:
        """Put theta0 back, without gradients."""
        for parameter, weight in zip(self._parameters, self._weights, strict=True):
            parameter.data = weight
            parameter.grad = None

    def verify(self) -> None:
        """Assert that the student is at theta0, bit for bit.

        Raises:
            RuntimeError: it is not.
        """
        if parameter_digest(self._student) != self._digest:
            raise RuntimeError("theta0 was not restored bit for bit")

    def _room(self) -> list[Tensor]:
        if not self._copy:
            self._copy = [torch.empty_like(w) for w in self._weights]
        return self._copy


def parameter_digest(student: LanguageModel) -> str:
    """SHA-256 over every parameter's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for name, parameter in student.parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def inner(a: Direction, b: Direction) -> float:
    """Inner product of two directions: rows in float32, their sum in float64."""
    rows = ((x.reshape(-1, *x.shape[-1:]), y.reshape(-1, *y.shape[-1:])) for x, y in zip(a, b, strict=True))
    return sum(float(torch.linalg.vecdot(x, y).double().sum()) for x, y in rows)


def random_direction(student: LanguageModel, seed: int) -> Direction:
    """Gaussian direction over all parameters, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator).to(p.device) for _, p in student.parameters()]
