"""Rollouts by vLLM and by transformers: the same prompts, tokens a second, and whether their statistics agree.

Runs where vLLM is installed (`.venv-vllm/bin/python benchmarks/engines.py`); `make bench` does that.
"""

import time

import numpy as np
from history import recorded
from workload import QUIET, Row, show

from teachdiag.diagnostics.contexts.contexts_table import lay_out
from teachdiag.diagnostics.contexts.sampling import Group, Rollout, sample_group
from teachdiag.diagnostics.engines.vllm_launch import start
from teachdiag.diagnostics.engines.vllm_rollouts import longest, serve
from teachdiag.diagnostics.models.alignment import Context, batched
from teachdiag.diagnostics.models.pair import Pair, load_pair, outline_pair, resolve_pair
from teachdiag.diagnostics.scoring.tiles import score
from teachdiag.manifests import read_manifest
from teachdiag.prompts import load_prompts
from teachdiag.settings import CaptureSettings

SETTINGS = CaptureSettings(bank_prompts=48, update_prompts=12, max_new_tokens=32, positions=32)
PROMPTS = SETTINGS.bank_prompts + SETTINGS.update_prompts
STATISTICS = ("student_entropy", "forward_kl", "compatibility_k16", "student_logp")
Sampled = list[tuple[Group, list[Rollout]]]


def engine_rows() -> list[Row]:
    """Sample the same prompts with both engines, and score both samples."""
    sources = resolve_pair(SETTINGS, QUIET)
    outlines = outline_pair(sources, QUIET)
    groups, _ = lay_out(SETTINGS, outlines, load_prompts(read_manifest(SETTINGS.prompts), ""), ({}, {}), QUIET)
    begun = time.perf_counter()
    engine = start(sources[0], SETTINGS, longest(groups, SETTINGS), QUIET)
    started = time.perf_counter()
    by_vllm = list(serve(engine, outlines, SETTINGS, groups))
    served = time.perf_counter()
    del engine
    pair = load_pair(sources, SETTINGS.dtype, "cpu")
    begun_again = time.perf_counter()
    by_transformers = [(g, sample_group(pair.student, g, SETTINGS.sampling)) for g in groups]
    sampled = time.perf_counter()
    speeds = _tokens(by_transformers) / (sampled - begun_again), _tokens(by_vllm) / (served - started)
    return [
        ("transformers", f"{speeds[0]:.0f} tokens/s", "1"),
        ("vLLM", f"{speeds[1]:.0f} tokens/s", f"{speeds[1] / speeds[0]:.2f}"),
        ("vLLM, to start", f"{started - begun:.1f} s", ""),
        *_agreement(pair, by_transformers, by_vllm),
    ]


def _agreement(pair: Pair, *samples: Sampled) -> list[Row]:
    """Mean statistics of both samples, and their difference in standard errors; prompts are the units."""
    rows = []
    means = [_context_means(pair, sample) for sample in samples]
    for name in (*STATISTICS, "length"):
        one, other = (np.array([context[name] for context in sample]) for sample in means)
        error = np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
        told = f"{one.mean():.4f} and {other.mean():.4f}"
        apart = f"{(other.mean() - one.mean()) / error:+.2f} s.e." if error else "no spread"
        rows.append((f"mean {name}", told, apart))
    return rows


def _context_means(pair: Pair, sample: Sampled) -> list[dict[str, float]]:
    contexts = [
        Context(row["context_id"], row["prompt_id"], row["split"], prompt, prompt, rollout.token_ids)
        for group, rollouts in sample
        for row, prompt, rollout in zip(group.rows, group.prompts, rollouts, strict=True)
    ]
    found: list[dict[str, float]] = []
    for batch in batched(contexts, SETTINGS.batch_tokens):
        columns = score(pair.student, pair.teacher, batch, SETTINGS.tile_positions)
        for context in batch.contexts:
            own = batch.context_ids == context.context_id
            found.append({n: float(columns[n][own].mean()) for n in STATISTICS} | {"length": len(context.response)})
    return found


def _tokens(sample: Sampled) -> int:
    return sum(len(rollout.token_ids) for _, rollouts in sample for rollout in rollouts)


if __name__ == "__main__":
    show(f"Rollouts of {PROMPTS} prompts, embedded pair", recorded("engines", engine_rows()))
