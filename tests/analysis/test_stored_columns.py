"""Columns on demand: order, selection and limits of memory change no number.

The truth is the same analysis of a bank that memory holds whole.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import World, plant, without_refits

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.bank import measurements, stored_columns
from teachdiag.analysis.bank.stored_columns import StoredColumns
from teachdiag.artefacts import BUCKETS, CONTRASTS, ESTIMATES, INFERENCE, POSITIONS, TOP_N
from teachdiag.errors import ArtefactError
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings

WORLD = World(prompts=12, positions=40, slope_learnable=0.06, mean_gain=0.02)
QUICK, QUIET = AnalyzeSettings(draws=100, fold_repeats=2), Reporter(quiet=True)
_LISTS = ("ier", "pgt", "selectkd", "ida_opd")  # selectors that read top-K lists


def _scatter(run: Path) -> pd.DataFrame:
    """Put the rows of the positions into five shards at random; return them as they should be read."""
    table = POSITIONS.read_arrow(run / "positions")
    rows = np.random.default_rng(0).permutation(table.num_rows)
    for shard, own in enumerate(np.array_split(rows, 5)):
        pq.write_table(table.take(pa.array(own)), run / "positions" / f"part-{shard:05d}.parquet")
    frame_ = table.to_pandas()
    return frame_[frame_["split"] == "bank"].sort_values(["context_id", "position"], ignore_index=True)


@pytest.mark.parametrize("held", [1, 1 << 30])
def test_columns_are_those_of_the_sorted_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(stored_columns, "HELD_BYTES", held)
    run = plant(tmp_path / "run", WORLD)
    expected = _scatter(run)
    found = StoredColumns(POSITIONS, run / "positions", ("forward_kl", "token_id"), split="bank")
    assert found.n_rows == len(expected)
    for name in ("forward_kl", "token_id", "compatibility_k16", "forward_kl"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(found["student_topk_ids"], np.stack(expected["student_topk_ids"].tolist()))
    names, codes = found.texts("prompt_id")
    assert names == sorted(set(expected["prompt_id"]))
    assert [names[code] for code in codes] == expected["prompt_id"].tolist()
    assert "prompt_id" not in found
    assert len(found) == len(list(found))


def test_a_position_twice_is_refused(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", WORLD)
    pq.write_table(POSITIONS.read_arrow(run / "positions").slice(0, 1), run / "positions" / "part-00009.parquet")
    with pytest.raises(ArtefactError, match=r"the positions of .* hold a position twice"):
        StoredColumns(POSITIONS, run / "positions", ())


@pytest.mark.slow
def test_a_bank_that_memory_cannot_hold_gives_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_refits(monkeypatch)
    tables = (ESTIMATES, INFERENCE, CONTRASTS, BUCKETS, TOP_N)
    found = []
    for name in ("small", "large"):
        run = plant(tmp_path / name, replace(WORLD, seed=3))
        _scatter(run)
        run_analysis(run, QUICK, QUIET)
        found.append([table.read(table.file(run)) for table in tables])
        monkeypatch.setattr(stored_columns, "HELD_BYTES", 1)
        monkeypatch.setattr(measurements, "_LARGE", 1)
    for small, large in zip(*found, strict=True):
        kept = small[~small["selector"].isin(_LISTS)].reset_index(drop=True) if "selector" in small else small
        pd.testing.assert_frame_equal(kept, large)
        assert ("selector" in small) == (len(kept) < len(small))
