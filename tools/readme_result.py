"""`make readme`: put what was measured, whichever way it falls, into the README and docs/study.md.

The first run gives its first page and the picture; several give what all their probes show; a run that has trained
gives what came of it.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from teachdiag.analysis.report.result_block import result_block, study_block
from teachdiag.analysis.training.training_block import training_block

ROOT = Path(__file__).parents[1]
_PAGES = {"study": "docs/study.md"}  # of blocks that are not the README's
PICTURE, CURVE = Path("docs/efficiency.png"), Path("docs/accuracy.png")


def main(runs: Sequence[Path]) -> None:
    """Replace what stands between the marks of both pages, and the pictures."""
    for name, block in _blocks(runs):
        put(ROOT / _PAGES.get(name, "README.md"), name, block)


def put(page: Path, name: str, block: str) -> None:
    """Replace what stands between a page's marks of a name."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}{block}\n{end}{after}")


def _blocks(runs: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield what the runs give, by the name of its place in the README."""
    trained = [run for run in runs if (run / "train.json").exists()]
    probed = [run for run in runs if run not in trained]
    if probed:
        shutil.copy(probed[0] / "figures/efficiency.png", ROOT / PICTURE)
        picture = f"![The share of the whole batch's gain that selectors keep, by the share of tokens]({PICTURE})"
        yield "result", f"{picture}\n\n{result_block(probed[0])}"
    if len(probed) > 1:
        yield "study", study_block(probed)
    for run in trained:
        shutil.copy(run / "figures/accuracy.png", ROOT / CURVE)
        yield "training", f"![Share of right answers by budget and selector]({CURVE})\n\n{training_block(run)}"


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
