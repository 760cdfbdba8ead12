"""`make readme`: put the demo's result, whichever way it falls, into the README. Reads runs/demo."""

import re
import shutil
import sys
from pathlib import Path

from teachdiag.analysis.summary import result_block

ROOT = Path(__file__).parents[1]
PICTURE = Path("docs/demo_coefficients.png")


def main(run: Path) -> None:
    """Replace what stands between the README's result marks, and the picture beside it."""
    shutil.copy(run / "figures/coefficients.png", ROOT / PICTURE)
    block = f"![Standardised coefficients of the demo's real step and its placebos]({PICTURE})\n\n{result_block(run)}"
    readme = ROOT / "README.md"
    marks = r"(<!-- result:begin -->\n).*(<!-- result:end -->)"
    text = re.sub(marks, lambda m: f"{m[1]}{block}\n{m[2]}", readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
