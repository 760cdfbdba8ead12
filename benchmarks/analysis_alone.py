"""Seconds and peak MB of one analysis, in a process that loads nothing else: imports are left out of the time."""

import sys
import time
from pathlib import Path

from teachdiag.analysis.analyze import run_analysis
from teachdiag.peak_memory import peak_memory
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings

if __name__ == "__main__":
    settings = AnalyzeSettings(draws=int(sys.argv[2]))
    start = time.perf_counter()
    run_analysis(Path(sys.argv[1]), settings, Reporter(quiet=True))
    print(time.perf_counter() - start, peak_memory() / 1024**2)
