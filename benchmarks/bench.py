"""`make bench`: what the kernels cost, as ratios within one run. Prints tables and asserts nothing.

`scoring` measures capture's exact scoring, `probes` the kinds of probe, `selection` the selectors, `training` a step of
selective distillation, `estimates` the statistics at the paper's size, `intervals` how often their intervals hold the
truth, and `large` ten million positions.
"""

import sys

import torch
from estimates import estimate_rows
from intervals import coverage_rows
from large import large_rows
from probes import probe_rows
from rich.console import Console
from rich.table import Table
from scoring import memory_rows, peak_memory, time_rows
from selection import selection_rows
from training import training_rows
from workload import QUIET, Row, load_bench_pair


def main() -> None:
    """Print every table, or take one memory reading in a process of its own."""
    if sys.argv[1:2] == ["peak"]:
        print(peak_memory(int(sys.argv[2])))
        return
    threads = f"embedded pair, {torch.get_num_threads()} threads"
    show(f"Scoring, {threads}", [*time_rows(load_bench_pair()), *memory_rows()])
    show(f"Probes, {threads}", probe_rows(load_bench_pair(master=True), QUIET))
    show("Selectors", selection_rows())
    show(f"Training, {threads}", training_rows())
    show("Analysis, one BLAS thread", estimate_rows())
    show("Coverage of 95% intervals", coverage_rows())
    show("A bank that memory cannot hold", large_rows())


def show(title: str, rows: list[Row]) -> None:
    """Print one table."""
    table = Table(title=title)
    for heading in ("what", "measured", "ratio"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
