"""Masked steps: what is kept, and every number against explicit steps; resumption; the oracle.

The explicit steps are float64 autograd on plain transformers.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from slow import LOSSES, loss_term_gradients, plain_logp
from stages import Killed, dying, tables
from tiny_pair import KNOWN
from transformers import AutoModelForCausalLM

from teachdiag.artefacts import INTERVENTION_GAINS, INTERVENTIONS, POSITIONS, PREDICTIONS
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import interventions, selectors
from teachdiag.diagnostics.probes.masks import resolve_choosers
from teachdiag.errors import EstimationError, RunError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.selectors import Tokens
from teachdiag.settings import CaptureSettings, ProbeSettings

SMALL = {"batch_tokens": 100, "tile_positions": 7, "fix_contexts": 2}
SELECTORS = {
    **SMALL,
    "kind": "selectors",
    "name": "s",
    "selector": "random,learnable,forward_kl,predicted",
    "budgets": "0.1,0.5,1.0",
    "seeds": 2,
    "update_contexts": 3,
    "bank_contexts": 5,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, captured_once: Path, device: torch.device) -> Path:
    """A run with this experiment, to be read alone."""
    run = Path(shutil.copytree(captured_once, tmp_path_factory.mktemp("probed") / "run"))
    run_probe(run, ProbeSettings(**SELECTORS, device=str(device)), Reporter(quiet=True))
    return run


def test_every_selector_sees_the_same_batches_and_keeps_its_budget(probed: Path) -> None:
    cells = INTERVENTIONS.read(probed / "interventions/s")
    assert len(cells) == 2 * (1 + 4 * 2) * 2  # draws x (all + selectors x budgets below 1) x matches
    assert (cells["n_kept"] == np.ceil(cells["budget"] * cells["n_batch"] * (1 - 1e-12))).all()
    batches = cells.groupby("seed").apply(
        lambda group: {i for ids in group["kept_context_ids"] for i in ids}, include_groups=False
    )
    assert all(len(batch) == 3 for batch in batches)
    assert batches[0] != batches[1]
    results_fix = set(pd.read_json(probed / "probes/s.json", typ="series")["results"]["fix_contexts"])
    assert not (batches[0] | batches[1]) & results_fix  # L_fix is of other contexts than any loss term
    lengths = cells[cells["match"] == "norm"].groupby("seed")["update_norm"].nunique()
    assert (lengths == 1).all()
    unselective = cells[cells["selector"] == "all"].pivot_table("mean_gain", "seed", "match")
    assert (unselective["rate"] == unselective["norm"]).all()


def test_kept_positions_are_the_best_scored_and_described_as_such(probed: Path) -> None:
    cells = INTERVENTIONS.read(probed / "interventions/s")
    positions = POSITIONS.read(probed / "positions").set_index(["context_id", "position"])
    inner = PREDICTIONS.read(probed / "predictions/s").set_index(["context_id", "position"])
    for cell in cells[cells["selector"].isin(["forward_kl", "predicted"])].itertuples():
        kept = list(zip(cell.kept_context_ids, cell.kept_positions, strict=True))
        batch = set(cells[(cells["seed"] == cell.seed) & (cells["selector"] == "all")]["kept_context_ids"].iloc[0])
        score = positions["forward_kl"] if cell.selector == "forward_kl" else inner["fix_inner"]
        score = score[score.index.get_level_values(0).isin(batch)]
        assert set(kept) == set(score.sort_values().index[-cell.n_kept :])
        facts = positions.loc[kept]
        assert cell.mean_compatibility == pytest.approx(facts["compatibility_k16"].mean(), rel=1e-5)
        assert cell.mean_student_entropy == pytest.approx(facts["student_entropy"].mean(), rel=1e-5)
        of_batch = positions[positions.index.get_level_values(0).isin(batch)]
        q3 = (facts["student_entropy"] <= of_batch["student_entropy"].median()) & (
            facts["forward_kl"] >= of_batch["forward_kl"].median()
        )
        assert cell.q3_share == pytest.approx(q3.mean())


@pytest.mark.slow
@pytest.mark.device
def test_gains_are_those_of_explicit_masked_steps(probed: Path, tiny_settings: CaptureSettings) -> None:
    """Float64 models, one backward pass a kept position, the mean gradient, an SGD step, the bank scored anew."""
    contexts = {c.context_id: c for c in read_contexts(probed, Positions.of(tiny_settings))}
    bank = [c for c in contexts.values() if c.split == "bank"][:5]
    model = AutoModelForCausalLM.from_pretrained(tiny_settings.student, dtype=torch.float64)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_settings.teacher, dtype=torch.float64)
    taught = [plain_logp(teacher, c, "teacher", KNOWN).detach() for c in bank]
    theta0 = [p.detach().clone() for p in model.parameters()]

    def bank_kl() -> torch.Tensor:
        scored = zip([plain_logp(model, c, "student", KNOWN) for c in bank], taught, strict=True)
        return torch.stack([LOSSES["forward_kl"](p, q, 0) for ps, qs in scored for p, q in zip(ps, qs, strict=True)])

    before = bank_kl()
    bank_gradient = torch.autograd.grad(before.mean(), list(model.parameters()))
    cells = INTERVENTIONS.read(probed / "interventions/s")
    gains = INTERVENTION_GAINS.read(probed / "intervention_gains/s")
    chosen = cells[(cells["seed"] == 1) & (cells["budget"] == 0.1) & (cells["selector"] == "learnable")]
    for cell in chosen.itertuples():
        terms = [
            loss_term_gradients(tiny_settings.student, tiny_settings.teacher, contexts[i], "reverse_kl")[t]
            for i, t in zip(cell.kept_context_ids, cell.kept_positions, strict=True)
        ]
        mean = [torch.stack(parts).mean(0) for parts in zip(*terms, strict=True)]
        norm = sum(g.square().sum().item() for g in mean) ** 0.5
        assert cell.gradient_norm == pytest.approx(norm, rel=1e-3)
        slope = sum((g * b).sum().item() for g, b in zip(mean, bank_gradient, strict=True))
        assert cell.first_order_gain == pytest.approx(cell.update_norm / norm * slope, rel=2e-2)
        assert cell.match == "norm" or cell.update_norm == pytest.approx(1e-3 * norm, rel=1e-3)
        with torch.no_grad():
            for parameter, start, g in zip(model.parameters(), theta0, mean, strict=True):
                parameter.copy_(start - cell.update_norm / norm * g)
        truth = (before - bank_kl()).detach().numpy()
        mine = gains[(gains["seed"] == 1) & (gains["budget"] == 0.1) & (gains["selector"] == "learnable")]
        mine = mine[mine["match"] == cell.match].sort_values(["context_id", "position"])
        np.testing.assert_allclose(mine["gain"], truth, rtol=1e-2, atol=1e-5)
        assert cell.mean_gain == pytest.approx(truth.mean(), rel=1e-2, abs=1e-6)


@pytest.mark.slow
def test_a_killed_experiment_continues_at_the_next_cell(
    run: Path, probed: Path, device: torch.device, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = ProbeSettings(**SELECTORS, device=str(device))
    with monkeypatch.context() as patch:
        patch.setattr(interventions, "optimize", dying(interventions.optimize, 7))
        with pytest.raises(Killed):
            run_probe(run, probe, quiet)
    taken: list[int] = []
    optimize = interventions.optimize
    monkeypatch.setattr(interventions, "optimize", lambda *a: taken.append(1) or optimize(*a))
    run_probe(run, probe, quiet)
    assert len(taken) == 18 - 7
    assert tables(run) == tables(probed)
    assert (run / "probes/s.json").read_bytes() == (probed / "probes/s.json").read_bytes()


def test_random_masks_are_of_one_size_and_one_batch(run: Path, quiet: Reporter) -> None:
    run_probe(run, ProbeSettings(**SMALL, kind="lds", name="l", masks=6, mask_budget=0.25), quiet)
    cells = INTERVENTIONS.read(run / "interventions/l")
    assert set(cells["selector"]) == {"random_mask"}
    assert cells["n_kept"].nunique() == cells["n_batch"].nunique() == 1
    assert (
        len({tuple(zip(i, t, strict=True)) for i, t in cells[["kept_context_ids", "kept_positions"]].to_numpy()}) == 6
    )
    table = PREDICTIONS.read(run / "predictions/l").set_index(["context_id", "position"])
    for cell in cells.itertuples():
        kept = list(zip(cell.kept_context_ids, cell.kept_positions, strict=True))
        expected = cell.update_norm / cell.gradient_norm * table.loc[kept, "bank_inner"].mean()
        assert cell.first_order_gain == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_oracle_needs_isolated_gains_and_ranks_by_them(run: Path, quiet: Reporter) -> None:
    settings = SELECTORS | {"selector": "oracle", "budgets": "0.2"}
    part = ProbeSettings(**SMALL, kind="isolated", name="part", sample_from="update", sample=35)
    run_probe(run, part, quiet)  # knows too little to be the best that selection can do
    with pytest.raises(RunError, match="--kind isolated --sample-from update --sample 0"):
        run_probe(run, ProbeSettings(**settings), quiet)
    isolated = ProbeSettings(**SMALL, kind="isolated", name="i", sample_from="update", sample=0)
    run_probe(run, isolated, quiet)
    run_probe(run, ProbeSettings(**settings), quiet)
    gain = pd.read_parquet(run / "isolated/i").set_index(["context_id", "position"])["fix_gain"]
    cells = INTERVENTIONS.read(run / "interventions/s")
    for cell in cells[cells["selector"] == "oracle"].itertuples():
        kept = set(zip(cell.kept_context_ids, cell.kept_positions, strict=True))
        batch = set(cells[(cells["seed"] == cell.seed) & (cells["selector"] == "all")]["kept_context_ids"].iloc[0])
        known = gain[gain.index.get_level_values(0).isin(batch)]
        assert kept == set(known.sort_values().index[-cell.n_kept :])


def test_cells_of_another_selection_are_not_taken_up(
    run: Path, quiet: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's selector that is edited between a kill and the next start: its cells are measured anew."""
    own = tmp_path / "edited.py"
    monkeypatch.syspath_prepend(tmp_path)
    settings = ProbeSettings(**(SELECTORS | {"selector": "edited:score", "budgets": "0.2", "seeds": 1}))
    own.write_text("def score(tokens):\n    return tokens.column('position')\n")
    with monkeypatch.context() as patch:
        patch.setattr(selectors, "_write_gains", dying(selectors._write_gains, 0))
        with pytest.raises(Killed):
            run_probe(run, settings, quiet)
    own.write_text("def score(tokens):\n    return -1.0 * tokens.column('position')  # the other way round\n")
    monkeypatch.delitem(sys.modules, "edited")
    run_probe(run, settings, quiet)
    resumed = tables(run)
    shutil.rmtree(run / "probes")
    for folder in ("interventions", "intervention_gains", "predictions"):
        shutil.rmtree(run / folder)
    run_probe(run, settings, quiet)
    assert tables(run) == resumed


def test_saturated_compatibility_is_fine_under_ranks(run: Path, quiet: Reporter) -> None:
    """What the settings say is what is scored: ranks exist where quantiles do not."""
    tokens = Tokens(
        {"context_id": np.arange(40), "position": np.arange(40), "compatibility_k16": np.r_[0.5, np.ones(39)]}
    )
    by_rank = ProbeSettings(kind="selectors", selector="q3_high_c", normalisation="rank")
    (chooser,) = resolve_choosers(run, by_rank)
    more = {"student_entropy": np.arange(40.0), "forward_kl": np.arange(40.0)[::-1]}
    assert chooser.choose(Tokens(tokens.columns | more), 0.1).kept.sum() == 4
    with pytest.raises(EstimationError, match="compatibility_k16 is 1 at both"):
        resolve_choosers(run, replace(by_rank, normalisation="quantile"))[0].choose(Tokens(tokens.columns | more), 0.1)


@pytest.mark.slow
def test_a_selector_of_ones_own_and_a_misspelt_one(
    run: Path, quiet: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def last(tokens):\n    return tokens.column('position')\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = SELECTORS | {"selector": "mine:last", "budgets": "0.2", "seeds": 1}
    run_probe(run, ProbeSettings(**settings), quiet)
    cells = INTERVENTIONS.read(run / "interventions/s").set_index("selector")
    assert cells.loc["mine:last", "mean_position"].mean() > cells.loc["all", "mean_position"].mean()
    (tmp_path / "broken.py").write_text("def score(tokens):\n    return 1 / 0\n")
    with pytest.raises(SettingsError, match="selector broken:score failed: ZeroDivisionError: division by zero"):
        run_probe(run, ProbeSettings(**(settings | {"name": "t", "selector": "broken:score"})), quiet)
    (tmp_path / "leaving.py").write_text(
        "def score(tokens):\n    raise SystemExit\ndef unknown(tokens):\n    return [float('nan')] * len(tokens)\n"
    )
    for name, message in (("score", "failed: SystemExit: "), ("unknown", "scores too few positions")):
        with pytest.raises(SettingsError, match=f"selector leaving:{name} {message}"):
            run_probe(run, ProbeSettings(**(settings | {"name": name, "selector": f"leaving:{name}"})), quiet)
    assert [folder.name for folder in (run / "interventions").iterdir()] == ["s"]
    with pytest.raises(SettingsError, match="no selector 'learnible'"):
        run_probe(run, ProbeSettings(**(settings | {"name": "t", "selector": "learnible"})), quiet)


def test_masks_of_the_released_code_are_there_by_name(run: Path, quiet: Reporter) -> None:
    settings = SELECTORS | {"selector": "released:dlearn_high,released:random", "budgets": "0.05", "seeds": 1}
    run_probe(run, ProbeSettings(**settings), quiet)
    cells = INTERVENTIONS.read(run / "interventions/s").query("selector != 'all'")
    assert (cells["topped_up"] > 0).all()  # every sequence keeps at least one, beyond the budget
    assert (cells["n_kept"] == np.ceil(0.05 * cells["n_batch"]) + cells["topped_up"]).all()
    assert all(len(set(ids)) == 3 for ids in cells["kept_context_ids"])
    with pytest.raises(SettingsError, match="the released code has no mask 'learnable'"):
        run_probe(run, ProbeSettings(**(settings | {"name": "t", "selector": "released:learnable"})), quiet)
