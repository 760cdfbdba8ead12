"""What a step and its ladder take of memory, on all weights and on an adapter, in copies of the student's weights."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from workload import QUIET, Row, load_bench_pair, random_contexts

from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0
from teachdiag.diagnostics.probes.trained import choose_weights, trained_facts
from teachdiag.diagnostics.probes.updates import optimize, step_objective
from teachdiag.settings import ProbeSettings

_STEPS = (("sgd", "all"), ("adamw", "all"), ("adamw", "lora:r=16"))  # optimizer, and what it moves
_NAMES = {"sgd": "SGD", "adamw": "AdamW"}
_SHORT = 12  # tokens of a prompt: what a backward pass keeps of each token is no matter of the weights
_RESET = Path("/proc/self/clear_refs")  # 5 lets a process's peak begin anew


def adapter_rows() -> list[Row]:
    """The student, a step and a rung at their peak, beside a process without models; each in one of its own."""
    rows: list[Row] = []
    for optimizer, space in _STEPS:
        done = subprocess.run([sys.executable, __file__, optimizer, space], capture_output=True, text=True, check=True)
        taken, copies, moved = map(float, done.stdout.split())
        step = f"{_NAMES[optimizer]} step and a rung of it, --train {space}"
        what = f"{step} ({moved:.1%} of the weights), in copies of the student"
        rows.append((what, f"{taken / 2**20:.0f} MiB", f"{copies:.2f}"))
    return rows


def _measure(optimizer: str, space: str) -> None:
    """Print the peak of a step and a rung, bytes and copies of the student, and the share of its weights that move."""
    before = _status("VmRSS")
    student = load_bench_pair(master=True).student
    drawn = random_contexts(2, 4, "update")
    contexts = [
        replace(c, student_prompt=c.student_prompt[:_SHORT], teacher_prompt=c.student_prompt[:_SHORT]) for c in drawn
    ]
    settings = ProbeSettings(train=space, optimizer=optimizer, batch_tokens=64, tile_positions=4)
    with tempfile.TemporaryDirectory() as folder:
        teacher = compute_teacher_states(student, [contexts], 64, Path(folder) / "states.npy", QUIET)
        choose_weights(student, settings)
        facts = trained_facts(student)
        theta0 = Theta0(student)
        _RESET.write_text("5")
        optimize(student, [step_objective(contexts, teacher, settings)], settings, theta0, QUIET)
        theta0.displace(theta0.displacement(), 0.5)
    taken = _status("VmHWM") - before
    print(taken, taken / (4 * facts["of"]), facts["parameters"] / facts["of"])


def _status(name: str) -> int:
    """Bytes of one line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    _measure(*sys.argv[1:])
