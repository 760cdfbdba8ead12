"""Hooks of slime and verl: called as these call them, and against numbers worked from the log-probabilities by hand."""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from teachdiag.artefacts import MONITOR
from teachdiag.diagnostics.monitoring import slime_hook
from teachdiag.diagnostics.monitoring.monitor import Monitor
from teachdiag.diagnostics.monitoring.observation import at_tokens
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter

HOOK = "teachdiag.diagnostics.monitoring.verl_hook"


@dataclass
class Sample:
    """slime's, as far as its documents describe it."""

    tokens: list[int]
    response_length: int
    loss_mask: list[int] | None
    rollout_log_probs: list[float] | None
    teacher_log_probs: list[float] | torch.Tensor | None
    remove_sample: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


def samples(fall: float = 0.0) -> list[Sample]:
    """Of prompts of two tokens; the teacher's log-probabilities are of the whole text in one of them."""
    return [
        Sample([1, 2, 3, 4, 5], 3, [1, 0, 1], [-0.5, -9.0, -1.5], [-0.25 - fall, -0.1, -2.5 - fall]),
        Sample([1, 2, 6, 7], 2, None, [-2.0, -0.5], torch.tensor([-7.0, -7.0, -1.0 - fall, -0.5 - fall])),
        Sample([1, 2, 8], 1, [1], [-3.0], None, remove_sample=True),
    ]


RATIOS = np.array([-0.25, 1.0, -1.0, 0.0])  # log p - log q at the student's own tokens


def monitor(folder: Path) -> Monitor:
    return Monitor(folder, every=1, reporter=Reporter(quiet=True))


def test_over_all_tokens_the_shared_mass_is_what_both_distributions_have() -> None:
    logp, logq = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    found = at_tokens(logp.numpy(), logq.numpy())
    assert (logp.exp().numpy() * found["shared_mass"]).sum() == pytest.approx(
        float(torch.minimum(logp, logq).exp().sum())
    )
    assert (logp.exp().numpy() * found["log_ratio"]).sum() == pytest.approx(float((logp.exp() * (logp - logq)).sum()))


def test_log_probabilities_give_what_distributions_give_of_them(tmp_path: Path) -> None:
    student, teacher = torch.randn(2, 3, 6, 40, generator=torch.Generator().manual_seed(1))
    tokens, mask = torch.arange(18).view(3, 6), torch.arange(18).view(3, 6) % 4 > 0
    whole = monitor(tmp_path / "whole").observe_batch(0, student, teacher, tokens, mask)
    logp, logq = (z.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] for z in (student, teacher))
    told = monitor(tmp_path / "tokens").observe_log_probs(0, logp, logq, mask)
    assert told == {name: pytest.approx(whole[name], rel=1e-5) for name in told if not name.endswith("seconds")} | {
        name: told[name] for name in told if name.endswith("seconds")
    }
    assert {name.rpartition("/")[2] for name in told} == {"log_ratio", "shared_mass", "length", "seconds"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.full((2, 4), 0.5)}, "a log-probability of the student's is 0.5: none is above 0"),
        ({"teacher": torch.zeros(2, 3)}, r"teacher \(2, 3\), mask \(2, 4\): all must be the same"),
        ({"mask": torch.zeros(2, 4)}, "the mask is false everywhere"),
        ({"mask": torch.full((2, 4), -100)}, "the mask holds more than 0 and 1"),
    ],
)
def test_what_are_no_log_probabilities_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    given = {"student": -torch.ones(2, 4), "teacher": -torch.ones(2, 4), "mask": torch.ones(2, 4)} | change
    with pytest.raises(SettingsError, match=message):
        monitor(tmp_path).observe_log_probs(0, **given)


def test_slime_logs_what_its_samples_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = monitor(tmp_path / "teachdiag")
    monkeypatch.setattr(slime_hook, "_monitor", lambda folder: watch)
    named = list(inspect.signature(slime_hook.log_rollout_data).parameters)
    assert named == ["rollout_id", "args", "samples", "rollout_extra_metrics", "rollout_time"]  # as slime documents it
    args = SimpleNamespace(save=str(tmp_path))
    assert slime_hook._folder(args) == tmp_path / "teachdiag"
    for rollout, fall in enumerate((0.0, 1.0)):
        logged = {"rollout/reward": 1.0}
        assert slime_hook.log_rollout_data(rollout, args, samples(fall), logged, 2.5) is False
        ratios = RATIOS + fall
        assert logged["teachdiag/live/log_ratio"] == pytest.approx(ratios.mean())
        assert logged["teachdiag/live/shared_mass"] == pytest.approx(np.minimum(1, np.exp(-ratios)).mean())
        assert logged["teachdiag/live/length"] == 2
        assert logged["rollout/reward"] == 1.0
        assert ("teachdiag/live/alarm/off-support_drift" in logged) == (fall > 0)
    logged = {}
    assert slime_hook.log_rollout_data(2, args, samples()[2:], logged, 2.5) is False  # every sample was removed
    assert logged == {}
    rows = MONITOR.read(tmp_path / "teachdiag/monitor")
    assert list(rows["step"]) == [0, 1]
    assert list(rows["alarms"]) == ["", "off-support drift"]
    assert rows["n_positions"].tolist() == [4, 4]
    assert rows["forward_kl"].isna().all()


def test_slime_without_a_teachers_log_probabilities_is_told(tmp_path: Path) -> None:
    (lacking, _, _) = samples()
    lacking.teacher_log_probs = None
    with pytest.raises(
        SettingsError, match=r"has 0 teacher_log_probs for a response of 3 tokens: .* --opd-type sglang"
    ):
        slime_hook.log_rollout_data(0, SimpleNamespace(save=str(tmp_path)), [lacking], {}, 1.0)


def _verl(monkeypatch: pytest.MonkeyPatch, registry: dict[str, Callable[..., Any]]) -> None:
    """What verl 0.9.1 has under these names; its responses lie in front of the padding, one row early."""
    losses, padding = ModuleType("verl.trainer.distillation.losses"), ModuleType("verl.workers.utils.padding")
    losses.DISTILLATION_LOSS_REGISTRY = registry  # type: ignore[attr-defined]
    losses.get_distillation_loss_settings = lambda name: SimpleNamespace(use_estimator=name != "forward_kl_topk")  # type: ignore[attr-defined]
    padding.no_padding_2_padding = lambda tensor, data: tensor[data["responses"]]  # type: ignore[attr-defined]
    for name in ("verl", "verl.trainer", "verl.trainer.distillation", "verl.workers", "verl.workers.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for module in (losses, padding):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, HOOK, raising=False)


def test_verls_estimated_losses_report_what_their_tokens_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimated(config: Any, distillation_config: Any, model_output: Any, data: Any) -> tuple[torch.Tensor, dict]:
        return torch.ones(2, 2), {"distillation/abs_loss": 0.5}

    def listed(config: Any, distillation_config: Any, model_output: Any, data: Any) -> tuple[torch.Tensor, dict]:
        return torch.zeros(2, 2), {}

    registry = {"k1": estimated, "forward_kl_topk": listed}
    _verl(monkeypatch, registry)
    importlib.import_module(HOOK)
    assert registry["forward_kl_topk"] is listed
    data = {
        "responses": torch.tensor([[0, 1], [2, 3]]),
        "teacher_logprobs": torch.tensor([[-0.25], [-2.5], [-1.0], [-5.0]]),
        "response_mask": torch.tensor([[1, 1], [1, 0]]),
    }
    output = {"log_probs": torch.tensor([-0.5, -1.5, -2.0, -0.1], requires_grad=True)}
    given = {"config": None, "distillation_config": None, "model_output": output, "data": data}
    loss, metrics = registry["k1"](**given)
    assert loss.tolist() == [[1, 1], [1, 1]]
    expected = {"log_ratio": RATIOS[:3].mean(), "shared_mass": np.minimum(1, np.exp(-RATIOS[:3])).mean()}
    assert metrics == {"distillation/abs_loss": 0.5} | {
        f"teachdiag/live/{name}": pytest.approx(value) for name, value in expected.items()
    }
    data["response_mask"] = torch.zeros(2, 2)
    assert registry["k1"](**given)[1] == {"distillation/abs_loss": 0.5}
