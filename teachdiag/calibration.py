"""What one machine was measured to take, from which `teachdiag plan` extrapolates: its record, written and read.

`teachdiag calibrate` makes one. Where there is none, a reference that comes with the package is read in its place.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from teachdiag.cache import cache_folder
from teachdiag.errors import ArtefactError
from teachdiag.settings import DType
from teachdiag.settings.base import fits
from teachdiag.tables import write_text

COMMAND = "teachdiag calibrate"  # what makes one
REFERENCE = Path(__file__).parent / "calibrations/cpu.json"
_KIND = "teachdiag calibration"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The numbers of a calibration, all above 0.

    Attributes:
        student_parameters: parameters of the student that was measured.
        teacher_parameters: parameters of the teacher.
        vocabulary: ids that both models share.
        width: of the hidden state, of the wider model.
        bytes_per_position: bytes on disk that one more position adds to a file of the `positions` table.
        bytes_per_position_without_topk: the same without the top-K lists.
        bytes_per_file: bytes on disk of such a file with a single position.
        bytes_per_file_without_topk: the same without the top-K lists.
        scoring_tokens_per_second: tokens of contexts, prompts included, that both models read and score in 1 s.
        rollout_tokens_per_second: response tokens that the student samples in 1 s.
        scoring_peak_bytes: peak memory of scoring, on the device: of the whole process where that is a CPU.
    """

    student_parameters: float
    teacher_parameters: float
    vocabulary: float
    width: float
    bytes_per_position: float
    bytes_per_position_without_topk: float
    bytes_per_file: float
    bytes_per_file_without_topk: float
    scoring_tokens_per_second: float
    rollout_tokens_per_second: float
    scoring_peak_bytes: float


@dataclass(frozen=True)
class Calibration:
    """What was measured, in which type, and how: models, device, threads, versions, workload."""

    measured: Measured
    dtype: DType
    made_with: Mapping[str, Any]

    @property
    def device(self) -> str:
        """The device that was measured, for people: of a CPU with its threads."""
        threads = f"{self.made_with['threads']} threads, " if "threads" in self.made_with else ""
        return f"{self.made_with['device_name']}, {threads}{self.dtype}"

    @property
    def source(self) -> str:
        """The same, and of the reference that it is not this machine."""
        if not self.made_with.get("reference"):
            return self.device
        return f"{self.device} (a reference that comes with teachdiag; `{COMMAND}` measures this machine)"


def calibration_path() -> Path:
    """Where this machine's calibration lies."""
    return cache_folder() / "calibration.json"


def calibration_of(given: str) -> Calibration:
    """Return the calibration at a path, or if none is given this machine's, or the reference where it has none.

    Raises:
        ArtefactError: it cannot be read.
    """
    path = Path(given) if given else calibration_path()
    return read_calibration(path if given or path.exists() else REFERENCE)


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration whole or not at all."""
    content = {"kind": _KIND, **asdict(calibration)}
    write_text(json.dumps(content, indent=2) + "\n", path)


def read_calibration(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        ArtefactError: there is none, or the file is none, or a number of it is missing or not above 0.
    """
    if not path.exists():
        raise ArtefactError(f"there is no calibration at {path}: make one with `{COMMAND}`, or give --calibration")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"calibration {path} cannot be read ({error}): make one with `{COMMAND}`") from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise ArtefactError(f"{path} is no calibration of teachdiag: make one with `{COMMAND}`")
    measured, made_with = (part if isinstance(part := content.get(n), dict) else {} for n in ("measured", "made_with"))
    wrong = [f.name for f in fields(Measured) if not _positive(measured.get(f.name))]
    wrong += [name for name in ("device_name",) if name not in made_with]
    dtype: Any = content.get("dtype")
    if wrong or dtype not in get_args(DType):
        raise ArtefactError(
            f"calibration {path} lacks {', '.join(wrong or ['dtype'])}, or has it wrong: make it again with `{COMMAND}`"
        )
    return Calibration(Measured(**{f.name: measured[f.name] for f in fields(Measured)}), dtype, made_with)


def _positive(value: Any) -> bool:  # noqa: ANN401 (whatever JSON holds)
    """Whether it is a number above 0 that some machine may have measured: products of these stay finite."""
    return fits(value, float) and 1e-18 <= value <= 1e18
