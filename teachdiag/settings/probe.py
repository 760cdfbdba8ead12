"""Settings of probe."""

import re
from dataclasses import dataclass, fields

from teachdiag.errors import SettingsError
from teachdiag.settings.base import (
    COUNTABLE,
    OF_JSD,
    Checked,
    Derivative,
    Kind,
    Loss,
    Match,
    Normalisation,
    Optimizer,
    Rollouts,
    Scope,
    Split,
    Ties,
    flag,
    option,
)


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Checked):
    """One kind of probe, its loss, and where its steps are taken. The pair and the bank are the run's."""

    name: str = option("", "Name of the probe inside the run; by default made from kind, loss, optimizer and settings")
    kind: Kind = option(
        "one_step",
        "'one_step': a step on the update batch beside its placebos; 'placebo': the same with many draws of each; "
        "'checkpoint': a student trained elsewhere; 'isolated': one step on one position's loss at a time; "
        "'predicted': first-order gains of every position; 'selectors': steps restricted to selected positions; "
        "'lds': steps restricted to random positions",
    )
    loss: Loss = option("reverse_kl", "OPD loss of the step, over the full vocabulary except 'sampled_reverse_kl'")
    jsd_beta: float = option(0.5, "Teacher's share of the mixture in --loss jsd", "between 0 and 1")
    optimizer: Optimizer = option(
        "auto",
        "Optimizer of the step, with fresh state; 'auto' is sgd where loss terms are compared one by one (isolated, "
        "selectors, lds), else adamw",
    )
    learning_rate: float | str = option(
        "auto",
        "Learning rate of the step. 'auto', for a single step (kinds one_step and placebo), is the longest at which "
        "first order explains 95% of the variance of the gain, from 1e-5 for AdamW, 1e-3 for SGD, down by halves; for "
        "other kinds, and for several --steps, it is that rate itself, 1e-5 for isolated steps. With --match norm: the "
        "length of each isolated step, 5e-4 by default",
    )
    weight_decay: float = option(0.0, "Weight decay of the step, decoupled for AdamW", "1")
    clip_norm: float = option(0.0, "Gradient norm above which the gradient is scaled down; 0 is off", "Euclidean norm")
    steps: int = option(1, "Optimizer steps in a row, each on the next --update-contexts (kind one_step)", "steps")
    rollouts: Rollouts = option(
        "fixed", "'fresh' samples the responses of each of --steps anew from the student as it is then"
    )
    draws: int = option(5, "Draws of each placebo (kind placebo)", "draws")
    student_after: str = option("", "Hub id or local folder of the trained student (kind checkpoint)")
    update_on: Split = option("update", "'update': held-out prompts; 'bank': the bank itself, and labelled so")
    update_contexts: int = option(
        0, "Contexts in the update batch; 0 takes all there are (kind selectors: half of them)", "contexts"
    )
    bank_contexts: int = option(
        0, "Contexts of the bank that are rescored, from the first; 0 takes all (kinds selectors, lds)", "contexts"
    )
    fix_contexts: int = option(
        4,
        "Contexts set aside from the update split, whose mean forward KL is L_fix (kinds isolated, predicted, "
        "selectors, lds)",
        "contexts",
    )
    sample: int = option(240, "Positions that get a step of their own; 0 takes all (kind isolated)", "positions")
    sample_from: Split = option("bank", "Split from which these positions are drawn (kind isolated)")
    match: Match = option("rate", "'rate': one step size for all; 'norm': one update norm for all (kind isolated)")
    method: Derivative = option(
        "central",
        "First-order gains by central differences, or exactly, in forward mode (kinds predicted, selectors, lds)",
    )
    selector: str = option(
        "all",
        "Selectors to compare, comma-separated: names, module:function, released:MASK for one of the released code, or "
        "'all' (kind selectors)",
    )
    budgets: str = option("0.03,0.10,0.30,1.0", "Shares of the update batch that are kept, comma-separated (selectors)")
    seeds: int = option(5, "Draws of the update batch, the same for every selector (kind selectors)", "draws")
    normalisation: Normalisation = option("quantile", "How selectors put columns on a common scale")
    scope: Scope = option("global", "Whether positions compete over the whole batch or within each sequence")
    min_keep: int = option(0, "Positions kept in every sequence whatever the budget; 0 is off (selectors)", "positions")
    ties: Ties = option("random", "Which of the positions of equal score are kept (kind selectors)")
    masks: int = option(100, "Random masks of the update batch (kind lds)", "masks")
    mask_budget: float = option(0.1, "Share of the update batch in each random mask (kind lds)", "share")
    seed: int = option(0, "Root of every random stream of the probe", "integer")
    shard_model: bool = option(
        False,
        "Share both models, the student's float32 weights and the optimizer's state over the processes (FSDP2), for "
        "models larger than a device (kinds one_step, placebo, checkpoint)",
    )
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu")
    batch_tokens: int = option(2048, "Padded tokens in one forward (and backward) pass", "tokens")
    tile_positions: int = option(128, "Positions whose logits exist at the same time", "positions")

    def __post_init__(self) -> None:
        """Check every field on its own and against the kind, and resolve what 'auto' leaves open.

        Raises:
            SettingsError: a value is outside its range, or an option belongs to another kind of probe.
        """
        super().__post_init__()
        self._refuse_foreign_options()
        termwise = self.kind in ("isolated", "selectors", "lds")
        if self.optimizer == "auto":
            object.__setattr__(self, "optimizer", "sgd" if termwise else "adamw")
        self._require(self.kind != "isolated" or self.optimizer == "sgd", "optimizer", "'sgd' with --kind isolated")
        object.__setattr__(self, "learning_rate", self._resolved_rate())
        self._check_at_least(1, "batch_tokens", "tile_positions", "steps", "draws", "fix_contexts", "seeds", "masks")
        self._check_at_least(0, "weight_decay", "clip_norm", "update_contexts", "bank_contexts")
        self._check_at_least(0, "sample", "min_keep", "seed")
        self._check_at_most(COUNTABLE, "steps", "draws", "seeds", "masks")
        lowest, highest = _RATES[self.optimizer]
        told = f"between {lowest:g} and {highest:g} with --optimizer {self.optimizer}, or 'auto'"
        self._require(lowest <= self.step_size <= highest, "learning_rate", told)
        self._require(0 < self.jsd_beta < 1, "jsd_beta", "strictly between 0 and 1")
        below = self.mask_budget < 1 or self.kind != "lds"
        self._require(self.mask_budget > 0 and below, "mask_budget", "above 0, and below 1, where all masks are equal")
        self._require(re.fullmatch(r"[\w-]*", self.name) is not None, "name", "made of letters, digits, '_' and '-'")
        self._require(self.kind != "checkpoint" or self.student_after != "", "student_after", "given for a checkpoint")
        self._require(self.rollouts == "fixed" or self.steps > 1, "steps", "above 1 with --rollouts fresh")
        self._require(self.rollouts == "fixed" or not self.shard_model, "rollouts", "'fixed' with --shard-model")
        self.budget_shares  # noqa: B018 (parsing is the check)

    @property
    def step_size(self) -> float:
        """Learning rate of the step: where that is found on a ladder, the ladder's longest."""
        return self._usual_rate() if self.learning_rate == "auto" else float(self.learning_rate)

    @property
    def laddered(self) -> bool:
        """Whether one step is taken whose length can be told from its direction, so that a ladder of it is measured."""
        return self.kind == "placebo" or (self.kind == "one_step" and self.steps == 1)

    @property
    def budget_shares(self) -> tuple[float, ...]:
        """Budgets of the selector experiment, each in (0, 1]."""
        try:
            shares = tuple(dict.fromkeys(float(share) for share in self.budgets.split(",")))
        except ValueError:
            shares = ()
        self._require(all(0 < s <= 1 for s in shares) and shares != (), "budgets", "shares in (0, 1], like '0.03,0.1'")
        return shares

    def words(self) -> list[str]:
        """Options of the command line that give these settings, but for defaults and what the kind does not read."""
        words = []
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value != entry.default and self.kind in _OPTION_KINDS.get(entry.name, (self.kind,)):
                words += [flag(entry.name)] if value is True else [flag(entry.name), str(value)]
        return words

    def _resolved_rate(self) -> float | str:
        """The rate as a number, which the command line gives as text; 'auto' only where a ladder decides."""
        if self.learning_rate == "auto":
            return "auto" if self.laddered else self._usual_rate()
        try:
            return float(self.learning_rate)
        except (TypeError, ValueError):
            raise SettingsError(f"--learning-rate is {self.learning_rate!r}: it must be a number or 'auto'") from None

    def _usual_rate(self) -> float:
        if self.kind == "isolated":
            return 5e-4 if self.match == "norm" else 1e-5
        return 1e-5 if self.optimizer == "adamw" else 1e-3

    def _refuse_foreign_options(self) -> None:
        """Refuse an option that the chosen kind or loss does not read."""
        foreign = {name: kinds for name, kinds in _OPTION_KINDS.items() if self.kind not in kinds}
        self._refuse_idle({n: f"--kind {' or '.join(kinds)}, not to {self.kind}" for n, kinds in foreign.items()})
        self._refuse_idle(OF_JSD if self.loss != "jsd" else {})


_RATES = {"adamw": (1e-12, 1.0), "sgd": (1e-12, 1e3)}  # AdamW moves every weight by its rate
_BATCHES: tuple[Kind, ...] = ("one_step", "placebo", "predicted", "selectors", "lds")
_TERMS: tuple[Kind, ...] = ("isolated", "predicted", "selectors", "lds")
_OPTION_KINDS: dict[str, tuple[Kind, ...]] = {
    "loss": (*_BATCHES, "isolated"),
    "jsd_beta": (*_BATCHES, "isolated"),
    "optimizer": (*_BATCHES, "isolated"),
    "learning_rate": (*_BATCHES, "isolated"),
    "weight_decay": _BATCHES,
    "clip_norm": _BATCHES,
    "steps": ("one_step",),
    "rollouts": ("one_step",),
    "draws": ("placebo",),
    "student_after": ("checkpoint",),
    "update_on": ("one_step", "placebo"),
    "shard_model": ("one_step", "placebo", "checkpoint"),
    "update_contexts": _BATCHES,
    "bank_contexts": ("selectors", "lds"),
    "fix_contexts": _TERMS,
    "sample": ("isolated",),
    "sample_from": ("isolated",),
    "match": ("isolated",),
    "method": ("predicted", "selectors", "lds"),
    "selector": ("selectors",),
    "budgets": ("selectors",),
    "seeds": ("selectors",),
    "normalisation": ("selectors",),
    "scope": ("selectors",),
    "min_keep": ("selectors",),
    "ties": ("selectors",),
    "masks": ("lds",),
    "mask_budget": ("lds",),
}
