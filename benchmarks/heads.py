"""What statistics cost where hidden states are there, beside the bare products of both LM heads and TRL's kernel."""

from functools import partial

import torch
import torch.nn.functional as F
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from workload import Row, best, load_bench_pair, random_contexts

from teachdiag.diagnostics.models.alignment import batched
from teachdiag.diagnostics.scoring.statistics import statistics
from teachdiag.diagnostics.scoring.tiles import States, tiled, tiles
from teachdiag.settings import CaptureSettings

CONTEXTS, POSITIONS = 8, 192
_DIVERGENCES = (0.0, 1.0, 0.5)  # TRL's beta: forward KL, reverse KL, JSD


@torch.no_grad()
def head_rows() -> list[Row]:
    """Every statistic of capture, the two bare head products, and those divergences that TRL's kernel gives."""
    pair, settings = load_bench_pair(), CaptureSettings()
    batches = batched(random_contexts(CONTEXTS, POSITIONS, "bank"), settings.batch_tokens)
    models = ((pair.student, "student"), (pair.teacher, "teacher"))
    hidden = [torch.cat([model.hidden_rows(batch, side) for batch in batches]) for model, side in models]
    heads = [model.head for model, _ in models]
    tokens = torch.from_numpy(batches[0].tokens).long().repeat(len(hidden[0]))[: len(hidden[0])]
    states = States(hidden[0], heads[0], hidden[1], heads[1])

    def products() -> None:
        for rows in tiles(len(hidden[0]), settings.tile_positions):
            for values, head in zip(hidden, heads, strict=True):
                F.linear(values[rows], head.weight)

    def theirs() -> None:
        for beta in _DIVERGENCES:
            ChunkedDivergenceFunction.apply(hidden[0], heads[0].weight, None, hidden[1], heads[1].weight, None, beta)

    measure = partial(tiled, states, lambda z, w, rows: statistics(z, w, tokens[rows]), settings.tile_positions)
    bare, ours, kernel = best(products), best(measure), best(theirs)
    return [
        (f"two bare products with the LM heads, {len(hidden[0])} positions", f"{bare:.2f} s", "1"),
        ("heads and every statistic of capture", f"{ours:.2f} s", f"{ours / bare:.2f}"),
        ("TRL's ChunkedDivergenceFunction, KL both ways, JSD and entropy", f"{kernel:.2f} s", f"{kernel / bare:.2f}"),
        ("heads and every statistic, beside TRL's few", f"{ours:.2f} s", f"{ours / kernel:.2f}"),
    ]
