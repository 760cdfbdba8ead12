"""Scoring against a float64 brute force on a tiny random Qwen3 pair, and its invariances."""

from dataclasses import replace

import numpy as np
import pytest
import slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teachdiag.artefacts import BOUNDS, POSITIONS
from teachdiag.diagnostics.models.alignment import Context, batched, check_fits, relaid
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.diagnostics.scoring.statistics import statistics
from teachdiag.diagnostics.scoring.tiles import Columns, States, score, tiled
from teachdiag.errors import ContextError


@pytest.fixture
def contexts() -> list[Context]:
    """Unequal prompts, a longer one for the teacher in some, and responses from one token up."""
    rng = np.random.default_rng(0)
    made = []
    for number, (prompt, extra, response) in enumerate([(5, 0, 9), (17, 4, 1), (3, 11, 6), (8, 0, 12)]):
        ours = tuple(rng.integers(0, 256, prompt).tolist())
        theirs = tuple(rng.integers(0, 256, extra).tolist()) + ours
        made.append(
            Context(number, f"p/{number}", "bank", ours, theirs, tuple(rng.integers(0, 256, response).tolist()))
        )
    return made


def scored(pair: Pair, batches: list, tile: int) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    rows = {}
    for batch in batches:
        columns: Columns = score(pair.student, pair.teacher, batch, tile)
        for row, key in enumerate(zip(batch.context_ids.tolist(), batch.positions.tolist(), strict=True)):
            rows[key] = {name: values[row] for name, values in columns.items()}
    return rows


def test_every_column_matches_the_definition(pair: Pair, contexts: list[Context]) -> None:
    """One whole unpadded float64 forward pass a position gives the truth."""
    rows = scored(pair, batched(contexts, batch_tokens=80), tile=5)
    student, teacher = pair.student.model.double(), pair.teacher.model.double()
    checked: set[str] = set()
    for c in contexts:
        for t, token in enumerate(c.response):
            ids = torch.tensor([c.student_prompt + c.response[:t]]), torch.tensor([c.teacher_prompt + c.response[:t]])
            with torch.no_grad():
                z, w = (
                    m(i).logits[0, -1, : pair.vocabulary].numpy() for m, i in zip((student, teacher), ids, strict=True)
                )
                hidden = student.model(ids[0]).last_hidden_state[0, -1].numpy()
            truth = slow.position_columns(z, w, token) | {"hidden_norm_sq": (hidden**2).sum()}
            row = rows[c.context_id, t]
            for name, value in truth.items():
                assert row[name] == pytest.approx(value, rel=2e-4, abs=2e-6), (name, c.context_id, t)
            assert_lists(row, slow.softmax(z), slow.softmax(w))
            checked |= truth.keys()
    lists = {c.name for c in POSITIONS.columns if "topk" in c.name}
    keys = {"context_id", "position", "prompt_id", "split", "token_id", "pos_norm", "weight"}
    assert checked | lists | keys == {c.name for c in POSITIONS.columns if c not in BOUNDS}  # no column goes untested


def assert_lists(row: dict[str, np.ndarray], p: np.ndarray, q: np.ndarray) -> None:
    for own, other, a, b in (("student", "teacher", p, q), ("teacher", "student", q, p)):
        ids = row[f"{own}_topk_ids"]
        assert ids.tolist() == slow.top(a, 32)
        np.testing.assert_allclose(row[f"{own}_topk_logp"], np.log(a[ids]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row[f"{other}_logp_at_{own}_topk"], np.log(b[ids]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 3, 64])
def test_layout_and_tiles_do_not_change_the_answer(pair: Pair, contexts: list[Context], tile: int) -> None:
    whole = scored(pair, batched(contexts, 10_000), 1000)
    for batches in (batched(contexts, 1), batched(contexts[::-1], 40), relaid(contexts, 60, 256)):
        for key, row in scored(pair, batches, tile).items():
            for name, value in row.items():
                np.testing.assert_allclose(value, whole[key][name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_batches_hold_every_context_once_within_the_budget(contexts: list[Context]) -> None:
    batches = batched(contexts, 50)
    assert sorted(c.context_id for b in batches for c in b.contexts) == [0, 1, 2, 3]
    assert all(len(b.contexts) == 1 or len(b.contexts) * max(c.cost for c in b.contexts) <= 50 for b in batches)
    assert batched(contexts[::-1], 50) == batches


logit_rows = st.integers(0, 2**32 - 1).flatmap(lambda seed: st.tuples(st.just(seed), st.floats(0.01, 60)))


@settings(max_examples=60)
@given(logit_rows, logit_rows)
def test_ranges_hold_for_any_logits(ours: tuple[int, float], theirs: tuple[int, float]) -> None:
    z, w = (torch.randn(3, 70, generator=torch.Generator().manual_seed(seed)) * scale for seed, scale in (ours, theirs))
    columns = {name: v.double().numpy() for name, v in statistics(z, w, torch.tensor([0, 1, 69])).items()}
    for name, values in columns.items():
        assert np.isfinite(values).all(), name
        if name.startswith(("forward_kl", "reverse_kl", "disagreement", "student_entropy", "teacher_entropy")):
            assert (values >= 0).all(), name
        if name.startswith(("compatibility", "bhattacharyya", "overlap", "jaccard", "teacher_top1")):
            assert ((values >= 0) & (values <= 1)).all(), name
    assert (columns["jsd"] <= np.log(2) + 1e-6).all()
    for k in (8, 16, 32):
        assert (columns[f"compatibility_bound_k{k}"] <= columns[f"compatibility_k{k}"] + 1e-6).all()
    assert (np.diff([columns[f"compatibility_k{k}"] for k in (8, 16, 32)], axis=0) >= -1e-6).all()


def test_an_autocast_around_the_caller_moves_nothing(pair: Pair, contexts: list[Context]) -> None:
    """In half precision, inner products over the vocabulary would be rounded to three digits."""
    (batch,) = batched(contexts[:1], 1000)
    tokens = torch.from_numpy(batch.tokens).long()
    hidden = [model.hidden_rows(batch, side) for model, side in ((pair.student, "student"), (pair.teacher, "teacher"))]
    states = States(hidden[0], pair.student.head, hidden[1], pair.teacher.head)
    with torch.no_grad():
        plain = tiled(states, lambda z, w, rows: statistics(z, w, tokens[rows]), 4)
        with torch.autocast("cpu", torch.bfloat16):
            again = tiled(states, lambda z, w, rows: statistics(z, w, tokens[rows]), 4)
    for name, values in plain.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)


def test_equal_models_have_no_divergence() -> None:
    z = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)) * 5
    columns = statistics(z, z.clone(), torch.zeros(4, dtype=torch.long))
    for name in ("forward_kl", "reverse_kl", "jsd", "disagreement_k16", "logit_alignment", "forward_logit_energy"):
        assert columns[name].abs().max() < 1e-6, name
    assert (columns["overlap_k8"] == 1).all()


def test_shuffling_the_vocabulary_changes_no_scalar() -> None:
    generator = torch.Generator().manual_seed(3)
    z, w = torch.randn(2, 5, 90, generator=generator) * 4
    order = torch.randperm(90, generator=generator)
    tokens = torch.arange(5)
    moved = torch.argsort(order)[tokens]
    before, after = statistics(z, w, tokens), statistics(z[:, order], w[:, order], moved)
    for name, values in before.items():
        if not name.endswith("ids"):
            torch.testing.assert_close(values, after[name], rtol=1e-4, atol=2e-6, msg=name)


def test_alignment_is_the_gain_of_a_step_on_the_head_alone(pair: Pair) -> None:
    """With only the LM head trained on one position's reverse KL, the gain is eta * ||h||^2 * A to first order."""
    eta = 1e-5
    h = torch.randn(1, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = pair.student.head.weight.detach().double()[: pair.vocabulary]
    taught = pair.teacher.head.weight.detach().double()[: pair.vocabulary]
    logq = (h @ taught.T).log_softmax(-1)

    def forward_kl(w: torch.Tensor) -> torch.Tensor:
        return (logq.exp() * (logq - (h @ w.T).log_softmax(-1))).sum()

    w = weight.clone().requires_grad_()
    logp = (h @ w.T).log_softmax(-1)
    (logp.exp() * (logp - logq)).sum().backward()
    gain = forward_kl(weight) - forward_kl(weight - eta * w.grad)
    columns = statistics((h @ weight.T).float(), logq.float(), torch.zeros(1, dtype=torch.long))
    assert abs(gain.item()) > 1e-9
    assert gain.item() == pytest.approx(eta * h.square().sum().item() * columns["logit_alignment"].item(), rel=1e-2)


def test_non_finite_logits_are_named(pair: Pair, contexts: list[Context]) -> None:
    with torch.no_grad():
        pair.teacher.model.get_input_embeddings().weight[contexts[2].teacher_prompt[0]] = float("nan")
    with pytest.raises(ContextError, match=r"teacher gives NaN .* in context 2 at position 0"):
        scored(pair, batched([replace(contexts[2])], 100), 4)


def test_contexts_that_cannot_be_scored_are_refused(contexts: list[Context]) -> None:
    with pytest.raises(ContextError, match="context 1 has no kept position"):
        check_fits([replace(contexts[1], response=())], {"student": 100}, Known(256))
    with pytest.raises(ContextError, match="context 3 has 19 tokens for the student, whose limit is 18"):
        check_fits(contexts, {"student": 18}, Known(256))
    token = contexts[2].response[0]
    with pytest.raises(ContextError, match=rf"holds token id {token}, in whose place a picture or a sound was read"):
        check_fits([contexts[2]], {"student": 100}, Known(256), frozenset({token}))
