"""Models sharded over processes: what processes find that hold them whole."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import launch, options

from teachdiag.artefacts import CONTEXTS, POSITIONS
from teachdiag.settings import CaptureSettings


@pytest.fixture(scope="module")
def settings(student_path: str, teacher_path: str, manifest_path: str) -> CaptureSettings:
    sizes = {"bank_prompts": 12, "update_prompts": 10, "max_new_tokens": 12, "positions": 10}
    layout = {"batch_tokens": 100, "tile_positions": 7, "shard_contexts": 4}
    return CaptureSettings(student=student_path, teacher=teacher_path, prompts=manifest_path, **sizes, **layout)


def test_capture(tmp_path: Path, settings: CaptureSettings) -> None:
    """Three groups and eleven shards among two processes, which must take as many passes as each other."""
    given = replace(settings, bank_prompts=20, update_prompts=16, responses=2, shard_contexts=7)
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for run, asked in ((whole, given), (sharded, replace(given, shard_model=True))):
        done = launch(2, "capture", "--run", str(run), *options(asked))
        assert done.returncode == 0, done.stderr[-3000:]
    pd.testing.assert_frame_equal(CONTEXTS.read(whole / "contexts"), CONTEXTS.read(sharded / "contexts"))
    ours, theirs = (POSITIONS.read(run / "positions") for run in (sharded, whole))
    scalars = ours.select_dtypes("number").columns
    pd.testing.assert_frame_equal(ours[scalars], theirs[scalars], rtol=1e-4, atol=1e-6)
