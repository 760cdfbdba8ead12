"""`make readme`: put what was measured, whichever way it falls, into the README and the pages of its results.

The first run gives its headline to the README, its first page to docs/demo.md, the picture of both, and the numbers of
the worked example in docs/concepts.md; several give what all their probes show to docs/study.md; a run that has trained
gives what came of it to docs/sweep.md.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from teachdiag.analysis.report.result_block import headline_block, result_block, study_block
from teachdiag.analysis.training.training_block import training_block
from teachdiag.figures.captions import read_captions
from tools import worked_example

ROOT = Path(__file__).parents[1]
PAGES = {
    "headline": "README.md",
    "result": "docs/demo.md",
    **dict.fromkeys(worked_example.PLACES, worked_example.PAGE),
    "study": "docs/study.md",
    "training": "docs/sweep.md",
}


def main(runs: Sequence[Path]) -> None:
    """Replace what stands between the marks of the pages, and the pictures."""
    for name, block in _blocks(runs):
        put(ROOT / PAGES[name], name, block)


def put(page: Path, name: str, block: str) -> None:
    """Replace what stands between a page's marks of a name."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}{block}\n{end}{after}")


def _blocks(runs: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield what the runs give, by the name of its place in a page."""
    trained = [run for run in runs if (run / "train.json").exists()]
    probed = [run for run in runs if run not in trained]
    if probed:
        first = probed[0]
        picture = _copied(first, "efficiency")
        yield "headline", f"{picture.replace('](', '](docs/')}\n\n{headline_block(first)}"
        yield "result", f"{picture}\n\n{result_block(first)}"
        yield from worked_example.example_blocks(first).items()
    if len(probed) > 1:
        yield "study", study_block(probed)
    for run in trained:
        yield "training", f"{_copied(run, 'accuracy')}\n\n{training_block(run)}"


def _copied(run: Path, name: str) -> str:
    """Copy a figure of a run into the docs; return it in Markdown, with what is seen on it."""
    shutil.copy(run / "figures" / f"{name}.png", ROOT / "docs")
    return f"![{read_captions(run)[name].seen}]({name}.png)"


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
