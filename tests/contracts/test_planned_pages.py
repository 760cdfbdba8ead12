"""What README and pages say that a run takes is what `teachdiag plan` says, by the reference that comes with it."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from stages import ROOT
from typer.testing import CliRunner

from teachdiag.cli import app
from teachdiag.settings import ProbeSettings


@pytest.fixture(autouse=True)
def _never_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path))


def _planned(page: str) -> dict[str, Any]:
    """The answer of the page's own `teachdiag plan --positions ...`."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    command = re.search(r"^teachdiag (plan --positions .*)$", text, re.MULTILINE)
    assert command
    done = CliRunner().invoke(app, [*shlex.split(command[1]), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    planned: dict[str, Any] = json.loads(done.stdout)
    return planned


def _gb(amount: float) -> str:
    return f"{amount / 1e9:.0f} GB"


def test_one_s_own_pair() -> None:
    planned = _planned("docs/own-pair.md")
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


def test_a_billion_positions() -> None:
    planned, text = _planned("docs/scale.md"), (ROOT / "docs/scale.md").read_text()
    storage, memory = planned["storage_bytes"], planned["memory_bytes"]
    told = [storage["positions"], storage["positions_without_topk"], memory["capture"], memory["probe"]]
    assert [amount for amount in map(_gb, told) if amount not in text] == []
    assert f"{storage['probe_scratch'] / 1e12:.0f} TB" in text
    assert f"{planned['layout']['shard_contexts']:,} contexts" in text
