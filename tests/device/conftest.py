"""The tiny pair on the device that `--device` names, in every precision, and the same weights in float64 on the CPU."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from teachdiag.diagnostics.models.pair import Pair, load_pair, resolve_pair
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings


@dataclass(frozen=True)
class Precision:
    """In what models compute, and how far that may take them from float64.

    Attributes:
        dtype: of the weights, or of the forward computation where there are float32 master weights.
        tf32: whether float32 products on CUDA may round what goes in to 10 bits.
        nats: largest error of a log-probability or divergence of the tiny pair.
        relative: largest error of a gradient, by its length.
    """

    dtype: str
    tf32: bool
    nats: float
    relative: float


PRECISIONS = {
    "float32": Precision("float32", False, 1e-4, 1e-4),
    "tf32": Precision("float32", True, 0.15, 0.05),
    "bfloat16": Precision("bfloat16", False, 0.6, 0.2),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every precision of the device; TF32 is CUDA's."""
    if "precision" in metafunc.fixturenames:
        cuda = metafunc.config.getoption("--device").startswith("cuda")
        kinds = {name: kind for name, kind in PRECISIONS.items() if cuda or not kind.tf32}
        metafunc.parametrize("precision", kinds.values(), ids=kinds, indirect=True)


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[Precision]:
    torch.set_float32_matmul_precision("high" if request.param.tf32 else "highest")
    yield request.param
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def load(
    tiny_settings: CaptureSettings, device: torch.device, precision: Precision, quiet: Reporter
) -> Callable[..., Pair]:
    """Load the pair on the device; `master` keeps float32 weights of the student, to be moved."""

    def loaded(*, master: bool) -> Pair:
        pair = load_pair(resolve_pair(tiny_settings, quiet), precision.dtype, str(device), master=master)
        for model in (pair.student, pair.teacher):
            assert {p.device.type for _, p in model.parameters()} == {device.type}  # nothing fell back to the CPU
            assert model.head.weight.device.type == device.type
        return pair

    return loaded


@pytest.fixture
def exact() -> Callable[[Any], Any]:
    """Copy a model's present weights into float64 on the CPU."""
    return lambda model: copy.deepcopy(model.model).to("cpu", torch.float64)
