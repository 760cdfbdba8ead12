"""What README and pages say that a run takes is what `teachdiag plan` says, by the reference that comes with it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stages import ROOT

from teachdiag.settings import ProbeSettings


def _planned(page: str, cache: Path) -> dict[str, Any]:
    """The answer of the page's own `teachdiag plan --positions ...`, on a machine that was never calibrated."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    command = re.search(r"^teachdiag (plan --positions .*)$", text, re.MULTILINE)
    assert command
    done = subprocess.run(
        [sys.executable, "-m", "teachdiag", *shlex.split(command[1]), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={"TEACHDIAG_CACHE": str(cache), "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout)


def _gb(amount: float) -> str:
    return f"{amount / 1e9:.0f} GB"


@pytest.mark.slow
def test_one_s_own_pair(tmp_path: Path) -> None:
    planned = _planned("docs/own-pair.md", tmp_path)
    storage, copy = planned["storage_bytes"], 4 * planned["models"]["student"]
    further = ProbeSettings(kind="efficiency").student_copies - ProbeSettings().student_copies
    assert storage["positions"] + storage["probe_scratch"] < 1e9
    for page in ("README.md", "docs/own-pair.md"):
        text = (ROOT / page).read_text()
        assert _gb(planned["memory_bytes"]["capture"]) in text, page
        assert _gb(planned["memory_bytes"]["probe"]) in text, page
        assert _gb(planned["memory_bytes"]["probe"] + further * copy) in text, page
        assert "less than 1 GB of" in text, page
    time = planned["time_seconds"]
    share = (time["rollouts"] + time["scoring"] + time["probe"]) / time["training"]
    assert f"cost {share:.0%} of the time of the training run" in (ROOT / "docs/own-pair.md").read_text()


@pytest.mark.slow
def test_a_billion_positions(tmp_path: Path) -> None:
    planned, text = _planned("docs/scale.md", tmp_path), (ROOT / "docs/scale.md").read_text()
    storage, memory = planned["storage_bytes"], planned["memory_bytes"]
    told = [storage["positions"], storage["positions_without_topk"], memory["capture"], memory["probe"]]
    assert [amount for amount in map(_gb, told) if amount not in text] == []
    assert f"{storage['probe_scratch'] / 1e12:.0f} TB" in text
    assert f"{planned['layout']['shard_contexts']:,} contexts" in text
