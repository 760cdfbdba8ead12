"""The worked example of docs/concepts.md: its Python, run on a run, and what it prints."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

PAGE = "docs/concepts.md"
PLACES = ("window", "candidates")  # on the page, of what each block prints
_ROOT = Path(__file__).parents[1]
_SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)


def snippets() -> list[str]:
    """Return the page's Python, block by block."""
    return _SNIPPET.findall((_ROOT / PAGE).read_text())


def printed(blocks: list[str], run: Path) -> tuple[list[str], dict[str, Any]]:
    """Run blocks in one namespace, on a run in place of the demo.

    Returns:
        What each block prints, and the namespace afterwards.
    """
    names: dict[str, Any] = {}
    outputs = []
    for block in blocks:
        with redirect_stdout(io.StringIO()) as output:
            exec(block.replace('"runs/demo"', repr(str(run))), names)
        outputs.append(output.getvalue().rstrip())
    return outputs, names


def example_blocks(run: Path) -> dict[str, str]:
    """Return what the example prints of a run, by the names of its places in the page."""
    outputs, _ = printed(snippets(), run)
    return {name: f"```text\n{output}\n```" for name, output in zip(PLACES, outputs, strict=True)}
