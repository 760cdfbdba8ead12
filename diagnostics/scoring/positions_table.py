"""The `positions` table: frozen contexts scored batch by batch, written shard by shard."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from teachdiag.artefacts import CONTEXTS
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import KEY, Batch, Context, batched, in_shards
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.processes.group import in_share
from teachdiag.diagnostics.scoring.tiles import Columns, score
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings
from teachdiag.signals import positions_table
from teachdiag.tables import is_intact, shard_path, write_shard

Measure = Callable[[Batch], Columns]


def score_contexts(run: Path, settings: CaptureSettings, measure: Measure, reporter: Reporter) -> None:
    """Write this process's shards of the `positions` table; those that are there, undamaged, stay as they are.

    Args:
        run: the run directory, whose `contexts` are complete.
        settings: sizes of shards and batches.
        measure: returns the columns of a batch, as `scoring.score` does.
        reporter: progress.
    """
    total = CONTEXTS.read_arrow(run / "contexts", ["context_id"]).num_rows
    with reporter.bar("Scoring contexts", total=total) as advance:
        for index, shard in enumerate(in_shards(read_contexts(run, Positions.of(settings)), settings.shard_contexts)):
            path = shard_path(run / "positions", index)
            if not in_share(index) or is_intact(path):
                advance(len(shard))
                continue
            write_shard(score_shard(shard, settings, measure, lambda batch: advance(len(batch.contexts))), path)


def score_shard(
    shard: Sequence[Context], settings: CaptureSettings, measure: Measure, done: Callable[[Batch], None] | None = None
) -> pa.Table:
    """Return the rows of some contexts, in order; they depend on no other shard.

    Args:
        shard: the contexts.
        settings: size of batches.
        measure: returns the columns of a batch, as `scoring.score` does.
        done: told of every batch.
    """
    scored = []
    for batch in batched(shard, settings.batch_tokens):
        scored.append(position_rows(batch, measure(batch)))
        if done:
            done(batch)
    return pa.concat_tables(scored).sort_by(KEY)


def by_models(pair: Pair, settings: CaptureSettings) -> Measure:
    """Return what scores a batch with a pair that is loaded."""
    return lambda batch: score(pair.student, pair.teacher, batch, settings.tile_positions)


def position_rows(batch: Batch, columns: Columns) -> pa.Table:
    """Rows of the `positions` table from the statistics of one batch.

    Raises:
        ArtefactError: one is not finite.
    """
    rows = [c.rows for c in batch.contexts]
    ends = np.repeat([len(c.response) - 1 for c in batch.contexts], rows)
    drawn = [c.weights for c in batch.contexts if c.weights is not None]
    return positions_table().build(
        columns
        | ({"weight": np.concatenate(drawn)} if drawn else {})
        | {
            "context_id": batch.context_ids,
            "position": batch.positions,
            "prompt_id": np.repeat([c.prompt_id for c in batch.contexts], rows),
            "split": np.repeat([c.split for c in batch.contexts], rows),
            "token_id": batch.tokens,
            "pos_norm": batch.positions / np.maximum(ends, 1),
        }
    )
