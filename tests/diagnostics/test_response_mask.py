"""Responses that tools and users wrote part of: what they said is read as context, and never scored.

The truth: the same contexts without masks, of which a mask only leaves positions out; and explicit steps in float64.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masked import with_masks
from planted import claims_alone
from slow import LOSSES, plain_logp
from tiny_pair import EFFICIENCY_PROBE, KNOWN, PROBE
from transformers import AutoModelForCausalLM

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import CONTEXTS, GAINS, INNER_PRODUCTS, ISOLATED, POSITIONS, PREDICTIONS, VOCABULARY
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.probe import run_probe
from teachdiag.figures.report.token_view import token_view
from teachdiag.figures.run_tables import load_tables
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings, CaptureSettings, ProbeSettings, ReportSettings

KEY = ["context_id", "position"]


@pytest.fixture(scope="module")
def masked_once(
    tmp_path_factory: pytest.TempPathFactory, captured_once: Path, tiny_settings: CaptureSettings
) -> dict[str, Path]:
    """The tiny pair's contexts scored under masks and, all their positions, without."""
    folder = tmp_path_factory.mktemp("masked")
    contexts = {
        "masked": with_masks(captured_once / "contexts", folder / "masked.parquet"),
        "whole": captured_once / "contexts",
    }
    for name, path in contexts.items():
        settings = replace(tiny_settings, contexts=str(path), positions=5 if name == "masked" else 12)
        run_capture(folder / name, settings, Reporter(quiet=True))
    return {name: folder / name for name in contexts}


def test_a_mask_leaves_positions_out_and_changes_no_other(masked_once: dict[str, Path]) -> None:
    ours, all_ = (POSITIONS.read(masked_once[name] / "positions").set_index(KEY) for name in ("masked", "whole"))
    rows = CONTEXTS.read_arrow(masked_once["masked"] / "contexts").to_pylist()
    wanted = []
    for row in rows:
        mask = row["response_mask"] or [1] * len(row["response_token_ids"])
        wanted += [(row["context_id"], t) for t in np.flatnonzero(mask)[:5].tolist()]
    assert ours.index.to_list() == wanted
    theirs = all_.loc[ours.index]
    last = ours.reset_index().groupby("context_id")["position"].transform("max").to_numpy()
    np.testing.assert_allclose(ours["pos_norm"], ours.index.get_level_values(1) / np.maximum(last, 1), rtol=1e-6)
    for name in ours.columns.drop("pos_norm"):
        a, b = (np.stack(frame[name].to_numpy()) for frame in (ours, theirs))
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_one_step_probe_gains_what_an_explicit_step_on_the_students_tokens_gains(
    masked_once: dict[str, Path], tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    run = masked_once["masked"]
    run_probe(run, replace(PROBE, optimizer="sgd", learning_rate=1e-3, clip_norm=0.0), quiet)
    gains = GAINS.read(run / "gains/p").set_index(KEY)
    contexts = list(read_contexts(run, Positions(5, "first")))
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        for path in (tiny_settings.student, tiny_settings.teacher)
    )

    def losses(context: Context, loss: str) -> torch.Tensor:
        p = plain_logp(student, context, "student", KNOWN)
        q = plain_logp(teacher, context, "teacher", KNOWN).detach()
        return torch.stack([LOSSES[loss](a, b, 0) for a, b in zip(p, q, strict=True)])

    bank = [c for c in contexts if c.split == "bank"]
    before = torch.cat([losses(c, "forward_kl").detach() for c in bank])
    mean = torch.cat([losses(c, "reverse_kl") for c in contexts if c.split == "update"]).mean()
    along = torch.autograd.grad(mean, list(student.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(student.parameters(), along, strict=True):
            parameter -= 1e-3 * gradient
        after = torch.cat([losses(c, "forward_kl") for c in bank])
    assert gains.index.to_list() == [(c.context_id, t) for c in bank for t in c.positions.tolist()]
    np.testing.assert_allclose(gains["gain"], (before - after).numpy(), rtol=0.02, atol=3e-5)


@pytest.mark.slow
def test_every_kind_of_probe_keeps_to_the_mask(masked_once: dict[str, Path], quiet: Reporter) -> None:
    run, sizes = masked_once["masked"], {"batch_tokens": 100, "tile_positions": 7, "fix_contexts": 2}
    positions = POSITIONS.read(run / "positions", [*KEY, "split", "forward_kl"])
    keys = {split: set(rows[KEY].itertuples(index=False, name=None)) for split, rows in positions.groupby("split")}
    run_probe(run, ProbeSettings(kind="isolated", name="i", sample=0, **sizes), quiet)
    isolated = ISOLATED.read(run / "isolated/i")
    assert set(isolated[KEY].itertuples(index=False, name=None)) == keys["bank"]
    joined = isolated.merge(positions, on=KEY)
    np.testing.assert_allclose(joined["forward_kl_before"], joined["forward_kl"], rtol=1e-3, atol=1e-5)
    run_probe(run, ProbeSettings(kind="predicted", name="f", **sizes), quiet)
    predicted = PREDICTIONS.read(run / "predictions/f").merge(isolated, on=KEY)
    assert len(predicted) == len(keys["bank"])
    run_probe(run, replace(EFFICIENCY_PROBE, name="e"), quiet)
    products = INNER_PRODUCTS.read(run / "inner_products/e", [*KEY, "block", "block_positions"])
    assert set(products[KEY].itertuples(index=False, name=None)) == keys["update"]
    assert products.groupby("block")["block_positions"].first().sum() == len(keys["bank"])
    run_probe(run, ProbeSettings(kind="selectors", name="s", seeds=1, budgets="0.5", update_contexts=3, **sizes), quiet)
    run_probe(run, ProbeSettings(kind="placebo", name="d", draws=2, batch_tokens=100), quiet)
    for probe in ("d", "d.shuffled_rollouts"):
        gains = GAINS.read(run / f"gains/{probe}", KEY)
        assert set(gains.itertuples(index=False, name=None)) == keys["bank"]


def test_a_masked_run_can_be_resumed_exported_and_captured_again(
    masked_once: dict[str, Path], tiny_settings: CaptureSettings, tmp_path: Path, quiet: Reporter
) -> None:
    """Its contexts, with truth values in place of 0 and 1, give the same positions."""
    table = pq.read_table(masked_once["masked"] / "contexts").to_pandas()
    table["response_mask"] = [None if mask is None else mask.astype(bool) for mask in table["response_mask"]]
    table.to_parquet(tmp_path / "contexts.parquet")
    settings = replace(tiny_settings, contexts=str(tmp_path / "contexts.parquet"), positions=5)
    for _ in range(2):  # the second finds it complete
        run_capture(tmp_path / "run", settings, quiet)
    one, other = (POSITIONS.read_arrow(run / "positions") for run in (tmp_path / "run", masked_once["masked"]))
    assert one.equals(other)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), min_size=1, max_size=4))
def test_rows_of_kept_positions_are_those_of_whole_responses(masks: list[list[bool]]) -> None:
    whole = [
        Context(i, f"p/{i}", "bank", (1,) * (i + 1), (1,) * (4 - i), tuple(range(100 * i, 100 * i + len(mask))))
        for i, mask in enumerate(masks)
    ]
    kept = [c.keeping(np.flatnonzero(mask)) for c, mask in zip(whole, masks, strict=True)]
    rows, flat = Batch(tuple(kept)), np.concatenate(masks)
    all_ = Batch(tuple(whole))
    assert rows.rows == flat.sum()
    for name in ("tokens", "context_ids", "positions"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(all_, name)[flat])
    for c, mask in zip(kept, masks, strict=True):
        read = c.inputs("student")
        assert [(*read, c.response[c.last])[i + 1] for i in c.places("student")] == [c.response[t] for t in c.positions]
        assert len(read) == len(c.student_prompt) + np.flatnonzero(mask)[-1]
        assert c.cost == max(len(c.inputs(side)) for side in ("student", "teacher"))


@pytest.mark.slow
def test_the_report_shows_what_is_not_scored(
    masked_once: dict[str, Path], tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every response reads as it is, up to its last scored token; scored tokens have their numbers and places."""
    claims_alone(monkeypatch)
    run = Path(shutil.copytree(masked_once["masked"], tmp_path / "run"))
    run_probe(run, replace(PROBE, name="one"), quiet)
    run_analysis(run, AnalyzeSettings(draws=100), quiet)
    view = token_view({"run": load_tables(run)}, ReportSettings(contexts=100))
    rows = {row["context_id"]: row for row in CONTEXTS.read_arrow(run / "contexts").to_pylist()}
    scored = POSITIONS.read(run / "positions", KEY).groupby("context_id")["position"].agg(list)
    words = {i: text for i, text in VOCABULARY.read(run / "vocabulary", ["token_id", "text"]).itertuples(index=False)}
    gaps = 0
    for (context,) in view.data["rows"]:
        tokens, ids = context["tokens"], rows[context["id"]]["response_token_ids"]
        assert [token["n"] for token in tokens] == scored[context["id"]]
        gaps += sum("u" in token for token in tokens)
        if not any(b >= 0x80 or b < 0x20 for i in ids for b in words[i].encode()):
            text = "".join(token.get("u", "") + token["t"] for token in tokens)
            assert text == "".join(words[i] for i in ids[: tokens[-1]["n"] + 1])
    assert gaps > 0
    assert view.note == "Grey text in italics was read as context, and is not scored."
