"""`make bench`: what the kernels cost, as ratios within one run. Prints tables and asserts nothing.

`scoring` measures capture's exact scoring, `heads` its part beyond the models, `probes` the kinds of probe, `adapters`
a step's memory, `selection` the selectors, `training` a step of selective distillation, `monitoring` what looking at a
training costs it, `estimates` the statistics at the paper's size, `intervals` how often their intervals hold the truth,
`efficiency` how often those of efficiency curves do, `commands` what a user waits for, `long` responses of up to 2,048
tokens, `longest` of up to 16,384, `simulation` how often verdicts and promises of power do, and `large` ten million
positions. `bench.py PART ...` runs these alone; without, those run that measure costs in minutes: all but `intervals`,
`efficiency`, `simulation`, `longest` and `large`. Each table is kept in benchmarks/history/, and stands beside what was
kept last on this machine.
"""

import sys
from collections.abc import Callable

import torch
from adapters import adapter_rows
from commands import command_rows
from efficiency import efficiency_coverage_rows
from estimates import estimate_rows
from heads import head_rows
from history import recorded
from intervals import coverage_rows
from large import large_rows
from long import long_context, long_rows, longest_rows
from monitoring import monitoring_rows
from probes import probe_rows
from scoring import memory_rows, peak_memory, time_rows
from selection import selection_rows
from simulation import simulation_rows
from training import step_alone, training_rows
from workload import QUIET, Row, load_bench_pair, show


def _parts() -> dict[str, tuple[str, Callable[[], list[Row]]]]:
    """Title of every part, and what makes its rows."""
    threads = f"embedded pair, {torch.get_num_threads()} threads"
    return {
        "scoring": (f"Scoring, {threads}", lambda: [*time_rows("float32"), *time_rows("bfloat16"), *memory_rows()]),
        "heads": (f"LM heads and statistics, {threads}", head_rows),
        "probes": (f"Probes, {threads}", lambda: probe_rows(load_bench_pair(master=True), QUIET)),
        "adapters": ("Memory of a step, embedded student", adapter_rows),
        "selection": ("Selectors", selection_rows),
        "training": (f"Training, {threads}", training_rows),
        "monitoring": (f"Monitor, {threads}", monitoring_rows),
        "estimates": ("Analysis, one BLAS thread", estimate_rows),
        "intervals": ("Do intervals hold the truth?", coverage_rows),
        "efficiency": ("Coverage of 95% intervals of efficiency", efficiency_coverage_rows),
        "long": (f"Long contexts, {threads}", long_rows),
        "longest": (f"The longest contexts, {threads}", longest_rows),
        "commands": ("Commands", command_rows),
        "simulation": ("Do verdicts and power keep their promises?", simulation_rows),
        "large": ("A bank that memory cannot hold", large_rows),
    }


_NAMED_ALONE = ("intervals", "efficiency", "simulation", "longest", "large")  # what is no cost, or takes ten minutes


def main() -> None:
    """Print every table or those that are named, or take one memory reading in a process of its own."""
    if sys.argv[1:2] == ["peak"]:
        print(peak_memory(int(sys.argv[2])))
        return
    if sys.argv[1:2] == ["long-context"]:
        print(*long_context(int(sys.argv[2]), sys.argv[3]))
        return
    if sys.argv[1:2] == ["step"]:
        print(*step_alone(sys.argv[2]))
        return
    parts = _parts()
    if unknown := [name for name in sys.argv[1:] if name not in parts]:
        sys.exit(f"no part {', '.join(unknown)}: choose from {', '.join(parts)}")
    for name in sys.argv[1:] or [name for name in parts if name not in _NAMED_ALONE]:
        title, rows = parts[name]
        show(title, recorded(name, rows()))


if __name__ == "__main__":
    main()
