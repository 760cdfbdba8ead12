"""Kind efficiency: inner products, masked gradients and real steps against float64 autograd; resumption; refusals."""

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from slow import LOSSES, plain_logp
from stages import Killed, dying, tables
from tiny_pair import KNOWN
from torch import Tensor
from transformers import AutoModelForCausalLM

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import EFFICIENCY, INNER_PRODUCTS, MASKED_GAINS, MASKED_STEPS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import efficiency, masked_gradients
from teachdiag.diagnostics.probes.efficiency import chosen_steps, deal_blocks
from teachdiag.diagnostics.probes.masked_gradients import _expected_square
from teachdiag.errors import RunError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed
from teachdiag.settings import AnalyzeSettings, CaptureSettings, ProbeSettings
from teachdiag.tables import rows_where
from teachdiag.terminal import show_probe

SMALL = {
    "kind": "efficiency",
    "name": "e",
    "batch_tokens": 100,
    "tile_positions": 7,
    "blocks": 3,
    "norm_selectors": "forward_kl,random,oracle",
    "norm_budgets": "0.1,0.5",
    "update_contexts": 3,
    "real_steps": 2,
    "method": "jvp",
}


class Truth:
    """A run's pair in float64, and the gradient of every loss term, one backward pass each."""

    def __init__(self, run: Path, settings: CaptureSettings) -> None:
        self.contexts = list(read_contexts(run, Positions.of(settings)))
        self.student = AutoModelForCausalLM.from_pretrained(settings.student, dtype=torch.float64)
        teacher = AutoModelForCausalLM.from_pretrained(settings.teacher, dtype=torch.float64)
        with torch.no_grad():
            self.taught = {c.context_id: plain_logp(teacher, c, "teacher", KNOWN) for c in self.contexts}
        self.parameters = list(self.student.parameters())

    def of(self, split: str) -> list[Context]:
        return [c for c in self.contexts if c.split == split]

    def terms(self, contexts: list[Context], taught: dict[tuple[int, int], Tensor] | None = None) -> dict:
        """Flat gradient of the reverse KL of every position, (context_id, position) -> (parameters,)."""
        found = {}
        for c in contexts:
            logp = plain_logp(self.student, c, "student", KNOWN)
            for t in range(len(c.response)):
                q = self.taught[c.context_id][t] if taught is None else taught[c.context_id, t]
                found[c.context_id, t] = self._flat(LOSSES["reverse_kl"](logp[t], q, 0))
        return found

    def kl(self, contexts: list[Context], name: str = "forward_kl") -> Tensor:
        """One KL of every position, context by context."""
        scored = ((plain_logp(self.student, c, "student", KNOWN), self.taught[c.context_id]) for c in contexts)
        return torch.stack([LOSSES[name](p, q, 0) for ps, qs in scored for p, q in zip(ps, qs, strict=True)])

    def bank_gradient(self, contexts: list[Context], kl: str = "forward_kl") -> Tensor:
        return self._flat(self.kl(contexts, kl).mean())

    def move(self, by: Tensor) -> None:
        parts = by.split([p.numel() for p in self.parameters])
        with torch.no_grad():
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.add_(part.view_as(parameter))

    def _flat(self, value: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, self.parameters, retain_graph=True)])


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, captured_once: Path, device: torch.device) -> Path:
    run = tmp_path_factory.mktemp("efficiency") / "run"
    shutil.copytree(captured_once, run)
    run_probe(run, ProbeSettings(**SMALL, device=str(device)), Reporter(quiet=True))
    return run


@pytest.fixture(scope="module")
def truth(captured_once: Path, tiny_settings: CaptureSettings) -> Truth:
    return Truth(captured_once, tiny_settings)


def results(run: Path) -> dict:
    return json.loads((run / "probes/e.json").read_text())["results"]


def test_blocks_hold_whole_prompts_and_all_of_the_bank(truth: Truth) -> None:
    bank = truth.of("bank")
    blocks = deal_blocks(bank, 3, 0)
    assert sorted(c.context_id for block in blocks for c in block) == [c.context_id for c in bank]
    prompts = [{c.prompt_id for c in block} for block in blocks]
    assert not any(a & b for a, b in combinations(prompts, 2))
    assert {len(p) for p in prompts} == {3, 4}
    assert deal_blocks(bank, 3, 0) == blocks != deal_blocks(bank, 3, 1)


@pytest.mark.device
def test_inner_products_are_those_of_autograd(probed: Path, truth: Truth) -> None:
    table = INNER_PRODUCTS.read(probed / "inner_products/e")
    blocks = deal_blocks(truth.of("bank"), 3, 0)
    terms = truth.terms(truth.of("update"))
    assert len(table) == 3 * len(terms)
    for number, block in enumerate(blocks):
        toward = truth.bank_gradient(block)
        mine = table[table["block"] == number].set_index(["context_id", "position"])
        assert set(mine["block_positions"]) == {sum(len(c.response) for c in block)}
        expected = np.array([(terms[key] @ toward).item() for key in mine.index])
        np.testing.assert_allclose(mine["inner"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_one_sided_differences_are_nearly_those_of_autograd(run: Path, truth: Truth, quiet: Reporter) -> None:
    """Their error is told by the cells, whose own gradients are exact."""
    given = {"method": "one-sided", "norm_batches": 1, "real_steps": 0, "batch_tokens": 60}
    run_probe(run, ProbeSettings(**SMALL | given), quiet)
    table = INNER_PRODUCTS.read(run / "inner_products/e")
    mine = table[table["block"] == 2].set_index(["context_id", "position"])["inner"]
    terms, toward = truth.terms(truth.of("update")), truth.bank_gradient(deal_blocks(truth.of("bank"), 3, 0)[2])
    expected = np.array([(terms[key] @ toward).item() for key in mine.index])
    np.testing.assert_allclose(mine, expected, rtol=0.05, atol=0.02 * np.abs(expected).max())
    assert 0 < results(run)["first_order_error"] < 0.05


def test_shuffled_products_are_under_rows_of_other_prompts(
    run: Path, truth: Truth, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt = []
    shuffled = efficiency.shuffled_teacher
    monkeypatch.setattr(efficiency, "shuffled_teacher", lambda *a: dealt.append(shuffled(*a)) or dealt[-1])
    run_probe(run, ProbeSettings(**SMALL | {"real_steps": 0, "norm_batches": 1}), quiet)
    (states,) = dealt
    everywhere = {states.first_row[c.context_id] + t: (c, t) for c in truth.contexts for t in range(len(c.response))}
    taught = {}
    for c in truth.of("update"):
        for t in range(len(c.response)):
            other, at = everywhere[int(states.stand_in[states.first_row[c.context_id] + t])]
            assert other.prompt_id != c.prompt_id
            taught[c.context_id, t] = truth.taught[other.context_id][at]
    terms, toward = truth.terms(truth.of("update"), taught), truth.bank_gradient(deal_blocks(truth.of("bank"), 3, 0)[1])
    table = INNER_PRODUCTS.read(run / "inner_products/e")
    mine = table[table["block"] == 1].set_index(["context_id", "position"])["inner_shuffled"]
    expected = np.array([(terms[key] @ toward).item() for key in mine.index])
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert MASKED_STEPS.read(run / "masked_steps/e")["real_gain"].isna().all()
    assert len(MASKED_GAINS.read(run / "masked_gains/e")) == 0
    assert results(run)["step"] == {"learning_rate": None, "length": None, "trials": []}


def kept_by(run: Path, cell: tuple) -> list[tuple[int, int]]:
    """Positions that a cell keeps, by the columns themselves."""
    positions = POSITIONS.read(run / "positions").set_index(["context_id", "position"])["forward_kl"]
    if cell.selector == "oracle":
        table = INNER_PRODUCTS.read(run / "inner_products/e")
        weighted = (table["inner"] * table["block_positions"]).groupby([table["context_id"], table["position"]])
        positions = weighted.sum()
    of_batch = positions[positions.index.get_level_values(0).isin(cell.context_ids)]
    assert len(of_batch) == cell.n_batch
    return list(of_batch.sort_values(ascending=False).index[: cell.n_kept])


@pytest.mark.device
def test_masked_gradients_are_those_of_autograd(probed: Path, truth: Truth) -> None:
    cells = MASKED_STEPS.read(probed / "masked_steps/e")
    assert len(cells) == 2 * (1 + 3 * 2)
    batches = [set(ids) for ids in cells[cells["selector"] == "all"]["context_ids"]]
    assert not batches[0] & batches[1]
    terms, toward = truth.terms(truth.of("update")), truth.bank_gradient(truth.of("bank"))
    for cell in cells[cells["selector"] != "random"].itertuples():
        mean = torch.stack([terms[key] for key in kept_by(probed, cell)]).mean(0)
        assert cell.n_kept == int(np.ceil(cell.budget * cell.n_batch * (1 - 1e-12)))
        assert cell.gradient_norm == cell.direction_norm == pytest.approx(mean.norm().item(), rel=1e-4)
        assert cell.exact_first_order == pytest.approx((mean @ toward).item(), rel=1e-3, abs=1e-6)
        assert cell.first_order == pytest.approx((mean @ toward).item(), rel=1e-3, abs=1e-6)
    assert results(probed)["first_order_error"] < 1e-3


@pytest.mark.device
def test_random_positions_have_their_expectation(probed: Path, truth: Truth) -> None:
    """Their norm with the signs that were drawn; and the formula against every mask there is."""
    cells = MASKED_STEPS.read(probed / "masked_steps/e")
    terms = truth.terms(truth.of("update"))
    for number in (0, 1):
        of_batch = cells[cells["batch"] == number].set_index(["selector", "budget"])
        whole = of_batch.loc[("all", 1.0)]
        rng = np.random.default_rng(derive_seed(0, "signs", number))
        signs = {
            c.context_id: rng.choice(np.array([-1, 1], np.int8), len(c.response))
            for c in sorted(truth.of("update"), key=lambda c: c.context_id)
            if c.context_id in whole["context_ids"]
        }
        signed = sum(int(signs[i][t]) * g for (i, t), g in terms.items() if i in signs)
        n, total = whole["n_batch"], whole["n_batch"] * whole["gradient_norm"]
        squares = max(float(signed.square().sum()), total**2 / n)
        for budget in (0.1, 0.5):
            row = of_batch.loc[("random", budget)]
            together = (row["n_kept"] - 1) / (n - 1)
            expected = row["n_kept"] / n * ((1 - together) * squares + together * total**2)
            assert row["gradient_norm"] == pytest.approx(expected**0.5 / row["n_kept"], rel=1e-4)
            assert row["first_order"] == whole["first_order"]
            assert np.isnan(row["exact_first_order"])
    vectors = np.random.default_rng(0).normal(0.3, 1, (6, 4))
    every = [np.square(vectors[list(mask)].sum(0)).sum() for mask in combinations(range(6), 2)]
    formula = _expected_square(np.square(vectors).sum(), np.square(vectors.sum(0)).sum(), 6, 2)
    assert formula == pytest.approx(np.mean(every))


@pytest.mark.device
def test_real_steps_gain_what_explicit_steps_gain(probed: Path, truth: Truth) -> None:
    cells = MASKED_STEPS.read(probed / "masked_steps/e")
    gains = MASKED_GAINS.read(probed / "masked_gains/e")
    taken = cells[cells["real_gain"].notna()]
    assert taken["selector"].iloc[0] == "all"
    assert len(taken) == 3
    assert set(taken["batch"]) == {0}
    assert len(set(taken["update_norm"])) == 1
    bank, terms = truth.of("bank"), truth.terms(truth.of("update"))
    block = {c.prompt_id: n for n, contexts in enumerate(deal_blocks(bank, 3, 0)) for c in contexts}
    before = truth.kl(bank).detach()
    owner = np.repeat([c.prompt_id for c in bank], [len(c.response) for c in bank])
    for cell in taken.itertuples():
        mean = torch.stack([terms[key] for key in kept_by(probed, cell)]).mean(0)
        truth.move(-cell.learning_rate * mean)
        gain = (before - truth.kl(bank).detach()).numpy()
        truth.move(cell.learning_rate * mean)
        assert cell.update_norm == pytest.approx(cell.learning_rate * mean.norm().item(), rel=1e-4)
        assert cell.real_gain == pytest.approx(gain.mean(), rel=2e-2, abs=1e-7)
        of_cell = gains[(gains["selector"] == cell.selector) & (gains["budget"] == cell.budget)]
        expected = pd.Series(gain).groupby(owner).agg(["mean", "size"]).loc[of_cell["prompt_id"]]
        np.testing.assert_allclose(of_cell["gain"], expected["mean"], rtol=0.05, atol=3e-7)
        assert list(of_cell["n_positions"]) == list(expected["size"])
        assert list(of_cell["block"]) == [block[p] for p in of_cell["prompt_id"]]
        assert len(of_cell) == len(set(owner))
    step = results(probed)["step"]
    assert step["trials"][-1]["curvature"] <= 0.02
    assert step["length"] == pytest.approx(taken["update_norm"].iloc[0])
    whole = taken[taken["selector"] == "all"].iloc[0]
    assert whole["real_gain"] == pytest.approx(whole["learning_rate"] * whole["first_order"], rel=0.1)


def test_the_other_kl_can_be_what_is_gained(run: Path, truth: Truth, quiet: Reporter) -> None:
    """Products, masked gradients and real steps are then all by the fall of KL(student || teacher)."""
    run_probe(run, ProbeSettings(**SMALL | {"outcome": "gain_reverse", "norm_batches": 1}), quiet)
    bank, terms = truth.of("bank"), truth.terms(truth.of("update"))
    toward = truth.bank_gradient(deal_blocks(bank, 3, 0)[1], "reverse_kl")
    table = INNER_PRODUCTS.read(run / "inner_products/e")
    mine = table[table["block"] == 1].set_index(["context_id", "position"])["inner"]
    expected = np.array([(terms[key] @ toward).item() for key in mine.index])
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    cells, before = MASKED_STEPS.read(run / "masked_steps/e"), truth.kl(bank, "reverse_kl").detach()
    whole = cells[(cells["selector"] == "all") & cells["real_gain"].notna()].iloc[0]
    mean = torch.stack([terms[key] for key in terms if key[0] in whole["context_ids"]]).mean(0)
    product = (mean @ truth.bank_gradient(bank, "reverse_kl")).item()
    assert whole["exact_first_order"] == pytest.approx(product, rel=1e-3)
    truth.move(-whole["learning_rate"] * mean)
    gain = (before - truth.kl(bank, "reverse_kl").detach()).mean().item()
    truth.move(whole["learning_rate"] * mean)
    assert whole["real_gain"] == pytest.approx(gain, rel=2e-2)
    gains = rows_where(MASKED_GAINS.read(run / "masked_gains/e"), selector="all")
    assert np.average(gains["gain"], weights=gains["n_positions"]) == pytest.approx(gain, rel=2e-2)


def test_real_steps_are_where_selectors_differ_most() -> None:
    class Stub:
        def __init__(self, selector: str, budget: float, gain: float, seed: int = 0) -> None:
            self.selector, self.budget, self.seed, self.gain = selector, budget, seed, gain

        def mean(self, _: str) -> float:
            return self.gain

    cells = [
        Stub("all", 1.0, 1.0),
        *(Stub(name, 0.01, gain) for name, gain in (("a", 9.0), ("b", 1.0))),  # too few positions
        *(Stub(name, 0.05, gain) for name, gain in (("a", 3.0), ("b", 2.0), ("c", 2.5))),
        *(Stub(name, 0.1, gain) for name, gain in (("a", 3.0), ("b", 0.5), ("c", 0.2))),
        Stub("a", 0.1, 99.0, seed=1),
    ]
    assert chosen_steps(cells, 0) == []
    assert [(cells[i].selector, cells[i].budget) for i in chosen_steps(cells, 3)] == [
        ("all", 1.0),
        ("a", 0.05),
        ("a", 0.1),
        ("c", 0.1),
    ]
    assert chosen_steps(cells, 9) == [0, 3, 4, 6, 8]


@pytest.fixture(scope="module")
def one_sided(tmp_path_factory: pytest.TempPathFactory, captured_once: Path) -> Path:
    run = Path(shutil.copytree(captured_once, tmp_path_factory.mktemp("one-sided") / "run"))
    run_probe(run, ProbeSettings(**SMALL | {"method": "one-sided"}), Reporter(quiet=True))
    return run


@pytest.mark.parametrize("after", [2, 4, 7])
def test_a_killed_probe_ends_with_the_same_bytes(
    run: Path, one_sided: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed at a block, at the search for a step's length, and among the cells."""
    probe = ProbeSettings(**SMALL | {"method": "one-sided"})
    with monkeypatch.context() as patch:
        patch.setattr(masked_gradients, "gradient", dying(masked_gradients.gradient, after))
        with pytest.raises(Killed):
            run_probe(run, probe, quiet)
    run_probe(run, probe, quiet)
    assert tables(run) == tables(one_sided)
    assert (run / "probes/e.json").read_bytes() == (one_sided / "probes/e.json").read_bytes()


def test_blocks_that_are_done_are_not_differentiated_again(
    run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, slopes = ProbeSettings(**SMALL), efficiency.slopes_along
    with monkeypatch.context() as patch:
        patch.setattr(efficiency, "slopes_along", dying(slopes, 2))
        with pytest.raises(Killed):
            run_probe(run, settings, quiet)
    scratch = run / "scratch/e"
    assert sorted(p.name for p in scratch.glob("block-*.parquet")) == ["block-0.parquet", "block-1.parquet"]
    taken = [(p, p.stat().st_mtime_ns) for p in scratch.glob("block-*.parquet")]
    with monkeypatch.context() as patch:
        patch.setattr(masked_gradients, "gradient", dying(masked_gradients.gradient, 1))
        with pytest.raises(Killed):
            run_probe(run, settings, quiet)
    assert [(p, p.stat().st_mtime_ns) for p, _ in taken] == taken
    assert (scratch / "block-2.parquet").exists()


def test_adamw_steps_along_signs(run: Path, truth: Truth, quiet: Reporter) -> None:
    """Its first step is g / (|g| + eps): not linear in what is kept, so it is known where it was measured."""
    given = {"optimizer": "adamw", "norm_batches": 1, "norm_budgets": "0.5", "learning_rate": 1e-6}
    run_probe(run, ProbeSettings(**SMALL | given), quiet)
    cells = MASKED_STEPS.read(run / "masked_steps/e")
    assert list(cells["selector"]) == ["all", "forward_kl", "random", "oracle"]  # random is drawn here
    terms, toward = truth.terms(truth.of("update")), truth.bank_gradient(truth.of("bank"))
    for cell in cells[cells["selector"] != "random"].itertuples():
        mean = torch.stack([terms[key] for key in kept_by(run, cell)]).mean(0)
        sign = mean / (mean.abs() + 1e-8)
        assert cell.gradient_norm == pytest.approx(mean.norm().item(), rel=1e-4)
        assert cell.direction_norm == pytest.approx(sign.norm().item(), rel=1e-3)
        assert cell.first_order == cell.exact_first_order == pytest.approx((sign @ toward).item(), rel=1e-2)
    assert cells["real_gain"].notna().sum() == 3
    assert results(run)["step"]["learning_rate"] == 1e-6


def test_the_terminal_shows_what_was_measured(probed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_probe(results(probed), probed)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("raw KL", "random", "oracle", "10%", "50%"))


@pytest.mark.slow
def test_the_analysis_judges_what_was_measured(tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter) -> None:
    """Both ends of the kind together: every selector at equal rate, those with norms at equal length, real steps."""
    run = tmp_path / "run"
    run_capture(run, replace(tiny_settings, bank_prompts=12, update_prompts=16), quiet)
    run_probe(run, ProbeSettings(**SMALL | {"loss": "forward_kl", "blocks": 4}), quiet)
    run_analysis(run, AnalyzeSettings(draws=100), quiet)
    table = EFFICIENCY.read(EFFICIENCY.file(run))
    whole = rows_where(table, selector="all", statistic="gain")["estimate"].iloc[0]
    products = INNER_PRODUCTS.read(run / "inner_products/e")
    assert whole == pytest.approx(np.average(products["inner"], weights=products["block_positions"]), rel=1e-5)
    shares = rows_where(table, statistic="share")
    assert set(rows_where(shares, match="norm")["selector"]) >= {"forward_kl", "random", "oracle"}
    assert len(set(rows_where(shares, match="rate")["selector"])) > 15
    assert shares["real_share"].notna().any()


def test_what_is_off_is_said(run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "_TOLERATED", 0.0)
    monkeypatch.setattr(masked_gradients, "_ROUNDED", 0.0)
    run_probe(run, ProbeSettings(**SMALL | {"norm_batches": 1}), quiet)
    off, without_step = results(run)["doubts"]
    assert off.startswith("First-order gains are off by up to ")
    assert without_step.startswith("No real step was taken: at learning rate ")
    assert MASKED_STEPS.read(run / "masked_steps/e")["real_gain"].isna().all()


def test_what_cannot_be_measured_is_refused(run: Path, quiet: Reporter) -> None:
    for given, error, said in (
        ({"norm_selectors": "forward_kl,predicted"}, SettingsError, "selector predicted reads fix_inner, which"),
        ({"selector": "nothing"}, SettingsError, "nothing"),
        ({"blocks": 11}, RunError, "has 10 bank prompts to deal into --blocks 11"),
        ({"bank_contexts": 2}, RunError, "has 2 bank prompts to deal into --blocks 3"),
        ({"update_contexts": 7}, RunError, "--update-contexts asks for 7"),
    ):
        with pytest.raises(error, match=said):
            run_probe(run, ProbeSettings(**SMALL | given), quiet)
