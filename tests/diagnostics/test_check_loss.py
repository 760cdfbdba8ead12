"""check-loss: closed forms of both KLs' gradients, expectations by enumeration, and planted mistakes by their names."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from teachdiag.cli import app
from teachdiag.diagnostics.loss_checks.gradients import LossFunction, Sample, expected, gradient
from teachdiag.diagnostics.loss_checks.references import references, top_k_advantage
from teachdiag.diagnostics.loss_checks.verdict import Verdict, judge, kl_gradients

END, V = 29, 30


@pytest.fixture(scope="module")
def sample() -> Sample:
    """Five responses of three to six tokens between masked columns, over 30 ids."""
    torch.manual_seed(0)
    lengths = torch.tensor([6, 6, 3, 5, 6])
    places = torch.arange(8)
    student = 2 * torch.randn(5, 8, V)
    return Sample(
        student=student,
        teacher=student + torch.randn(5, 8, V),
        tokens=student.softmax(-1).flatten(0, 1).multinomial(1).view(5, 8),
        mask=(places >= 1) & (places <= lengths[:, None]),
        end_ids=(END,),
    )


def _logs(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return student.log_softmax(-1), teacher.log_softmax(-1)


def _at(logs: Tensor, tokens: Tensor) -> Tensor:
    return logs.gather(-1, tokens[..., None])[..., 0]


def reverse_kl(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    logp, logq = _logs(student, teacher)
    return ((logp.exp() * (logp - logq)).sum(-1) * mask).sum() / mask.sum()


def forward_kl(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    logp, logq = _logs(student, teacher)
    return (logq.exp() * (logq - logp)).sum(-1) * mask


def score_function(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    logp, logq = (_at(logs, tokens) for logs in _logs(student, teacher))
    return -((logq - logp).detach() * logp)[mask].mean()


def whitened(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Advantages over the batch: less their mean, over their deviation."""
    logp, logq = (_at(logs, tokens)[mask] for logs in _logs(student, teacher))
    advantage = (logq - logp).detach()
    return -((advantage - advantage.mean()) / advantage.std() * logp).mean()


def k1(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The estimate log p(y) - log q(y) of the KL's value, differentiated: its gradient is grad log p(y), of mean 0."""
    logp, logq = (_at(logs, tokens) for logs in _logs(student, teacher))
    return (logp - logq)[mask].mean()


def k2(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    logp, logq = (_at(logs, tokens) for logs in _logs(student, teacher))
    return ((logp - logq).square() / 2)[mask].mean()


def k3(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    logp, logq = (_at(logs, tokens) for logs in _logs(student, teacher))
    return ((logq - logp).exp() - 1 - (logq - logp))[mask].mean()


def wrong_sign(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return -score_function(student, teacher, tokens, mask)


def teacher_one_late(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return reverse_kl(student[:, :-1], teacher[:, 1:], tokens[:, 1:], mask[:, 1:])


def tokens_one_late(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return score_function(student[:, :-1], teacher[:, :-1], tokens[:, 1:], mask[:, :-1])


def shifted_again(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """As labels of causal language models are shifted, though rows and tokens are aligned."""
    return reverse_kl(student[:, :-1], teacher[:, :-1], tokens[:, 1:], mask[:, 1:])


def without_end(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Padding is the end-of-text token, and is masked away wherever it stands."""
    return reverse_kl(student, teacher, tokens, mask & (tokens != END))


def without_end_sampled(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return score_function(student, teacher, tokens, mask & (tokens != END))


def without_last(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    return reverse_kl(student, teacher, tokens, mask & following)


def without_mask(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return reverse_kl(student, teacher, tokens, torch.ones_like(mask))


def detached(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return reverse_kl(student.detach(), teacher, tokens, mask)


def without_teacher(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return reverse_kl(student, student.detach() / 2, tokens, mask)


def to_another(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Towards something that has next to nothing of the teacher in it."""
    return reverse_kl(student, student.detach().flip(-1) * 3 + teacher * 1e-2, tokens, mask)


def not_finite(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return (student - student).sqrt()[mask].sum() + reverse_kl(student, teacher, tokens, mask)


def a_few(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The tokens of two responses, all of them."""
    return reverse_kl(student, teacher, tokens, mask & (torch.arange(len(mask)) < 2)[:, None])


def judged(loss: LossFunction, sample: Sample) -> Verdict:
    return judge("it", loss, sample, candidates=V, draws=2, seed=0)


@pytest.mark.parametrize(("loss", "side"), [(reverse_kl, 0), (forward_kl, 1)])
def test_gradients_of_both_kls_are_the_closed_forms(loss: LossFunction, side: int, sample: Sample) -> None:
    scale = int(sample.mask.sum()) if side == 0 else 1  # one is a mean, the other one number a token
    ours = gradient("it", loss, sample) * scale
    torch.testing.assert_close(ours[sample.mask], kl_gradients(sample)[side][sample.mask], atol=1e-6, rtol=1e-4)
    assert not ours[~sample.mask].any()


def test_an_expectation_is_the_sum_over_all_tokens(sample: Sample) -> None:
    """A loss that is a sum over tokens: E[g] at a position is its own matter, taken here one token at a time."""
    found = expected("it", score_function, sample, V, 2, 0)
    p = sample.student.softmax(-1)
    mean, square = torch.zeros_like(p), torch.zeros_like(p[..., 0])
    for token in range(V):
        once = gradient("it", score_function, sample, torch.full_like(sample.tokens, token))
        mean += p[..., token, None] * once
        square += p[..., token] * once.square().sum(-1)
    torch.testing.assert_close(found.mean, mean, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(found.square, square, atol=1e-7, rtol=1e-4)
    assert found.sampled
    assert not found.error.any()


def test_tokens_that_are_drawn_and_not_enumerated_are_unbiased_with_a_known_error(sample: Sample) -> None:
    exact = expected("it", score_function, sample, V, 2, 0).mean
    runs = [expected("it", score_function, sample, 4, 8, seed) for seed in range(60)]
    means = torch.stack([run.mean for run in runs])
    error = torch.stack([run.error for run in runs]).mean(0)[sample.mask]
    spread = means.var(0).sum(-1)[sample.mask]
    assert float((spread / error).mean()) == pytest.approx(1, abs=0.15)
    distance = (means.mean(0) - exact).square().sum(-1)[sample.mask] * len(runs)
    assert float((distance / error).mean()) == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize(
    ("loss", "finding"),
    [
        (detached, "no gradient"),
        (not_finite, "not finite"),
        (without_teacher, "no teacher"),
        (teacher_one_late, "off by one"),
        (tokens_one_late, "off by one"),
        (shifted_again, "mask"),
        (without_mask, "mask"),
        (without_last, "last token"),
        (without_end, "end of text"),
        (without_end_sampled, "end of text"),
        (top_k_advantage, "zero expected gradient"),
        (k1, "no teacher"),
        (wrong_sign, "wrong sign"),
        (to_another, "another direction"),
    ],
)
def test_planted_mistakes_have_their_names(loss: LossFunction, finding: str, sample: Sample) -> None:
    verdict = judged(loss, sample)
    assert verdict.finding == finding, verdict
    assert not verdict.teaches


@pytest.mark.parametrize(
    ("loss", "nearer"),
    [(reverse_kl, 0), (forward_kl, 1), (score_function, 0), (k2, 0), (k3, 1), (whitened, 0), (a_few, 0)],
)
def test_what_teaches_passes(loss: LossFunction, nearer: int, sample: Sample) -> None:
    verdict = judged(loss, sample)
    cosines = verdict.reverse, verdict.forward
    assert verdict.teaches, verdict
    assert cosines[nearer] == pytest.approx(1, abs=0.05 if loss is whitened else 1e-5)
    assert cosines[1 - nearer] < 0.99
    assert verdict.bias == pytest.approx(0, abs=0.3 if loss is whitened else 2e-3)
    assert (verdict.noise or 0) > 0.1 if verdict.sampled else verdict.noise == 0
    assert verdict.nothing == pytest.approx(0 if loss is not a_few else 1 - 12 / 26)


def test_a_few_candidates_are_enough_or_it_says_that_they_are_not(sample: Sample) -> None:
    assert judge("it", score_function, sample, 8, 16, 0).teaches
    assert judge("it", top_k_advantage, sample, 25, 16, 0).finding == "zero expected gradient"
    assert judge("it", top_k_advantage, sample, 2, 2, 0).finding == "undecided"


@pytest.mark.slow
def test_references_are_as_they_say(sample: Sample) -> None:
    found = {name: judged(loss, sample) for name, loss in references().items()}
    assert {name: verdict.finding for name, verdict in found.items() if verdict.finding} == {
        "top-k advantage": "zero expected gradient"
    }
    for ours, theirs in (("forward_kl", "trl KL(q || p)"), ("jsd", "trl JSD"), ("reverse_kl", "trl KL(p || q)")):
        assert found[ours].reverse == pytest.approx(found[theirs].reverse, abs=1e-5)
        assert found[ours].forward == pytest.approx(found[theirs].forward, abs=1e-5)


LOSSES = """
def good(student, teacher, tokens, mask):
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    return ((logp.exp() * (logp - logq)).sum(-1) * mask).sum() / mask.sum()

def bad(*given):
    return -good(*given)

def narrow(student, teacher): ...

def broken(student, teacher, tokens, mask):
    raise KeyError("teacher_logprobs")

def long(student, teacher, tokens, mask):
    return student

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_losses.py").write_text(LOSSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_command_judges_on_a_run_and_its_exit_code_says_how(captured_once: Path) -> None:
    words = f"--run {captured_once} --contexts 4 --positions 5 --candidates 300 --device cpu".split()
    done = CliRunner().invoke(app, ["check-loss", "my_losses:good", *words, "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout[done.stdout.index("{") :])
    assert summary["losses"][0]["reverse"] == pytest.approx(1, abs=1e-4)
    assert {loss["name"]: loss["finding"] for loss in summary["references"] if loss["finding"]} == {
        "top-k advantage": "zero expected gradient"
    }
    assert summary["tokens"] <= 20
    done = CliRunner().invoke(app, ["check-loss", "my_losses:good", "my_losses:bad", *words, "--no-references"])
    assert done.exit_code == 3, done.output
    assert "my_losses:bad: Steps on it lead away from the teacher" in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_what_is_no_loss_is_refused(captured_once: Path, refused: Callable[..., str]) -> None:
    run = ("--run", captured_once, "--no-references")
    for loss, sentence in [
        ("my_losses", "--losses is ['my_losses']: it must be module:function"),
        ("my_loses:good", "loss my_loses:good cannot be loaded: ModuleNotFoundError"),
        ("my_losses:god", "loss my_losses:god cannot be loaded: AttributeError"),
        ("my_losses:number", "loss my_losses:number is int, no function"),
        ("my_losses:narrow", "cannot be called as loss(student_logits, teacher_logits, token_ids, mask)"),
        ("my_losses:broken", "loss my_losses:broken failed: KeyError: 'teacher_logprobs'"),
        ("my_losses:long", "it must return one number, or one a token, like token_ids"),
    ]:
        assert sentence in refused("check-loss", loss, *run)
    assert "has no capture stage" in refused("check-loss", "my_losses:good", "--run", "none")
