"""Settings of probe."""

import re
from dataclasses import dataclass, fields

from teachdiag.errors import SettingsError
from teachdiag.losses import LOSSES, unread_options
from teachdiag.registry import Registry, described
from teachdiag.settings.base import (
    COUNTABLE,
    HEADLINE_BUDGETS,
    HEADLINE_SELECTORS,
    SCALE,
    Checked,
    Derivative,
    GainOutcome,
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
from teachdiag.settings.kind import Kind, declared_kind
from teachdiag.settings.lora import Lora, read_lora

_BATCHES = ("one_step", "placebo", "predicted", "selectors", "lds")  # kinds whose steps are on an update batch
_STEPS = (*_BATCHES, "isolated", "efficiency")  # that step on a loss at all
_TERMS = ("isolated", "predicted", "selectors", "lds")  # that look at loss terms one by one
_MASKS = ("selectors", "efficiency")  # that compare selectors
_BUDGETS = {"selectors": "0.03,0.10,0.30,1.0", "efficiency": "0.01,0.02,0.05,0.1,0.2,0.3,0.5,1.0"}
_RATES = {"adamw": (1e-12, 1.0), "sgd": (1e-12, 1e3)}  # AdamW moves every weight by its rate


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Checked):
    """One kind of probe, its loss, and where its steps are taken. The pair and the bank are the run's."""

    name: str = option(
        "", "Name of the probe inside the run; by default its kind, with a number where other settings have that name"
    )
    kind: str = option("one_step", lambda: described(KINDS))
    loss: str = option("reverse_kl", lambda: f"OPD loss of the step: {described(LOSSES)}", kinds=_STEPS)
    jsd_beta: float = option(0.5, "Teacher's share of the mixture in --loss jsd", "between 0 and 1", kinds=_STEPS)
    optimizer: Optimizer = option(
        "auto",
        "Optimizer of the step, with fresh state; 'auto' is sgd where loss terms are compared one by one (isolated, "
        "selectors, lds, efficiency), else adamw",
        kinds=_STEPS,
    )
    learning_rate: float | str = option(
        "auto",
        "Learning rate of the step. 'auto', for a single step (kinds one_step and placebo), is the longest at which "
        "first order explains 95% of the variance of the gain, from 1e-5 for AdamW, 1e-3 for SGD, down by halves; for "
        "kind efficiency, the longest of which it explains the mean gain but for 2%, from a quarter of these; for "
        "other kinds, and for several --steps, it is that rate itself, 1e-5 for isolated steps. With --match norm: the "
        "length of each isolated step, 5e-4 by default",
        kinds=_STEPS,
    )
    train: str = option(
        "auto",
        "Weights that steps move: 'all'; 'adapter', the student's own; or those of a fresh LoRA adapter that changes "
        "nothing yet, as 'lora:r=16,alpha=32,target=q_proj+v_proj', by default r=16, twice that, and all linear layers "
        "but the LM head. 'auto' is adapter for a student that has one, else all",
        kinds=_STEPS,
    )
    weight_decay: float = option(0.0, "Weight decay of the step, decoupled for AdamW", "1", kinds=_BATCHES)
    clip_norm: float = option(
        0.0, "Gradient norm above which the gradient is scaled down; 0 is off", "Euclidean norm", kinds=_BATCHES
    )
    steps: int = option(1, "Optimizer steps in a row, each on the next --update-contexts", "steps", kinds=("one_step",))
    rollouts: Rollouts = option(
        "fixed",
        "'fresh' samples the responses of each of --steps anew from the student as it is then",
        kinds=("one_step",),
    )
    draws: int = option(
        0,
        "Draws of each placebo; 0 takes 2, with kind placebo 5",
        "draws",
        kinds=("one_step", "placebo", "checkpoint"),
    )
    student_after: str = option(
        "", "Hub id or local folder of the trained student, or of a LoRA adapter of it", kinds=("checkpoint",)
    )
    update_on: Split = option(
        "update", "'update': held-out prompts; 'bank': the bank itself, and labelled so", kinds=("one_step", "placebo")
    )
    update_contexts: int = option(
        0,
        "Contexts in the update batch; 0 takes all there are (kind selectors: half of them; kind efficiency: 16, or "
        "half of them where these are fewer)",
        "contexts",
        kinds=(*_BATCHES, "efficiency"),
    )
    bank_contexts: int = option(
        0,
        "Contexts of the bank that are rescored, from the first; 0 takes all",
        "contexts",
        kinds=("selectors", "lds", "efficiency"),
    )
    fix_contexts: int = option(
        4, "Contexts set aside from the update split, whose mean forward KL is L_fix", "contexts", kinds=_TERMS
    )
    sample: int = option(240, "Positions that get a step of their own; 0 takes all", "positions", kinds=("isolated",))
    sample_from: Split = option("bank", "Split from which these positions are drawn", kinds=("isolated",))
    match: Match = option("rate", "'rate': one step size for all; 'norm': one update norm for all", kinds=("isolated",))
    method: Derivative = option(
        "central",
        "First-order gains by central differences; by one-sided ones, a sixteenth as long, less exact and cheaper "
        "where there are several directions; or exactly, in forward mode (jvp)",
        kinds=("predicted", "selectors", "lds", "efficiency"),
    )
    selector: str = option(
        "all",
        "Selectors to compare, comma-separated: names, module:function, released:MASK for one of the released code, or "
        "'all'",
        kinds=_MASKS,
    )
    budgets: str = option(
        "auto",
        "Shares of the update batch that are kept, comma-separated; 'auto' is "
        + ", or ".join(f"{shares} with --kind {kind}" for kind, shares in _BUDGETS.items()),
        kinds=_MASKS,
    )
    outcome: GainOutcome = option(
        "gain",
        "What counts as gain on the bank: 'gain', the drop of KL(teacher || student), or 'gain_reverse', that of "
        "KL(student || teacher)",
        kinds=("efficiency",),
    )
    blocks: int = option(
        8, "Blocks that the bank's prompts are dealt into; each costs a gradient", "blocks", kinds=("efficiency",)
    )
    norm_batches: int = option(
        2, "Update batches on which norms of masked gradients are measured", "batches", kinds=("efficiency",)
    )
    norm_selectors: str = option(
        ",".join(HEADLINE_SELECTORS),
        "Selectors whose norms are measured, comma-separated: the others are compared at equal learning rate only",
        kinds=("efficiency",),
    )
    norm_budgets: str = option(
        ",".join(f"{share:g}" for share in HEADLINE_BUDGETS),
        "Shares of the update batch at which these norms are measured, comma-separated",
        kinds=("efficiency",),
    )
    real_steps: int = option(
        4, "Masked steps that are really taken, beside the unselective one", "steps", kinds=("efficiency",)
    )
    seeds: int = option(5, "Draws of the update batch, the same for every selector", "draws", kinds=("selectors",))
    normalisation: Normalisation = option(
        "quantile", "How selectors put columns on a common scale", kinds=("selectors",)
    )
    scope: Scope = option(
        "global", "Whether positions compete over the whole batch or within each sequence", kinds=("selectors",)
    )
    min_keep: int = option(
        0, "Positions kept in every sequence whatever the budget; 0 is off", "positions", kinds=("selectors",)
    )
    ties: Ties = option("random", "Which of the positions of equal score are kept", kinds=("selectors",))
    masks: int = option(100, "Random masks of the update batch", "masks", kinds=("lds",))
    mask_budget: float = option(0.1, "Share of the update batch in each random mask", "share", kinds=("lds",))
    seed: int = option(0, "Root of every random stream of the probe", "integer")
    shard_model: bool = option(
        False,
        "Share both models, the student's float32 weights and the optimizer's state over the processes (FSDP2), for "
        "models larger than a device",
        panel=SCALE,
        kinds=("one_step", "placebo", "checkpoint"),
    )
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu", panel=SCALE)
    batch_tokens: int = option(2048, "Padded tokens in one forward (and backward) pass", "tokens", panel=SCALE)
    recompute: bool = option(
        False,
        "Keep only what goes into each layer for the backward pass, and compute the rest again (gradient "
        "checkpointing): for long contexts. No number changes, and a gradient takes a third longer",
        panel=SCALE,
        kinds=(*_BATCHES, "efficiency"),
    )
    tile_positions: int = option(128, "Positions whose logits exist at the same time", "positions", panel=SCALE)

    def __post_init__(self) -> None:
        """Check every field on its own and against the kind, and resolve what 'auto' leaves open.

        Raises:
            SettingsError: a value is outside its range, or an option belongs to another kind of probe.
        """
        super().__post_init__()
        self._refuse_foreign_options()
        kind = KINDS[self.kind]
        if self.optimizer == "auto":
            object.__setattr__(self, "optimizer", kind.optimizers[0])
        if self.budgets == "auto" and self.reads("budgets"):
            object.__setattr__(self, "budgets", _BUDGETS.get(self.kind, _BUDGETS["selectors"]))
        able = " or ".join(map(repr, kind.optimizers))
        self._require(self.optimizer in kind.optimizers, "optimizer", f"{able} with --kind {self.kind}")
        object.__setattr__(self, "learning_rate", self._resolved_rate())
        self._check_at_least(1, "batch_tokens", "tile_positions", "steps", "fix_contexts", "seeds", "masks")
        self._check_at_least(1, "norm_batches")
        self._check_at_least(2, "blocks")
        self._check_at_least(0, "draws", "weight_decay", "update_contexts", "bank_contexts")
        self._check_at_least(0, "sample", "min_keep", "seed", "real_steps")
        self._check_at_most(COUNTABLE, "steps", "draws", "seeds", "masks", "blocks", "norm_batches", "real_steps")
        lowest, highest = _RATES[self.optimizer]
        rule = f"between {lowest:g} and {highest:g} with --optimizer {self.optimizer}, or 'auto'"
        self._require(lowest <= self.step_size <= highest, "learning_rate", rule)
        self._check_clip_norm("clip_norm")
        self._require(0 < self.jsd_beta < 1, "jsd_beta", "strictly between 0 and 1")
        self._require(0 < self.mask_budget < 1, "mask_budget", "above 0, and below 1, where all masks are equal")
        self._require(re.fullmatch(r"[\w-]*", self.name) is not None, "name", "made of letters, digits, '_' and '-'")
        for name in kind.needs:
            self._require(getattr(self, name) != self.defaults()[name], name, f"given with --kind {self.kind}")
        self._require(self.rollouts == "fixed" or self.steps > 1, "steps", "above 1 with --rollouts fresh")
        self._require(self.rollouts == "fixed" or not self.shard_model, "rollouts", "'fixed' with --shard-model")
        known = self.train in ("auto", "all", "adapter") or self.fresh_adapter is not None
        self._require(known, "train", "'auto', 'all', 'adapter', or 'lora:' and its options")
        self._require(not (self.shard_model and self.fresh_adapter), "train", "'all' with --shard-model")
        if self.reads("budgets"):
            self.budget_shares  # noqa: B018 (parsing is the check)
        self.norm_shares  # noqa: B018

    @property
    def step_size(self) -> float:
        """Learning rate of the step: where that is found on a ladder, the ladder's longest."""
        return KINDS[self.kind].usual_rate(self) if self.learning_rate == "auto" else float(self.learning_rate)

    @property
    def fresh_adapter(self) -> Lora | None:
        """The adapter that is made for the probe; None where there is none."""
        kind, _, wanted = self.train.partition(":")
        return read_lora(wanted, "--train") if kind == "lora" else None

    @property
    def placebo_draws(self) -> int:
        """Draws of each placebo."""
        return self.draws or KINDS[self.kind].draws

    @property
    def laddered(self) -> bool:
        """Whether one step is taken whose length can be told from its direction, so that a ladder of it is measured."""
        return KINDS[self.kind].laddered and self.steps == 1

    @property
    def student_copies(self) -> int:
        """Copies of the weights that steps move, in float32: for a next step AdamW keeps two moments."""
        moments = 2 if self.optimizer == "adamw" and self.steps > 1 else 0
        return KINDS[self.kind].copies + moments

    @property
    def outcome_kl(self) -> str:
        """The KL whose fall on the bank is the gain of kind efficiency, by the name of its column."""
        return {"gain": "forward_kl", "gain_reverse": "reverse_kl"}[self.outcome]

    @property
    def budget_shares(self) -> tuple[float, ...]:
        """Budgets of the selector experiment, each in (0, 1]."""
        return self._shares("budgets")

    @property
    def norm_shares(self) -> tuple[float, ...]:
        """Budgets at which norms of masked gradients are measured, each in (0, 1]."""
        return self._shares("norm_budgets")

    def reads(self, name: str) -> bool:
        """Whether the kind of probe reads an option."""
        return kind_reads(self.kind, name)

    def words(self) -> list[str]:
        """Options of the command line that give these settings, but for defaults and what the kind does not read."""
        words = []
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value != entry.default and self.reads(entry.name):
                words += [flag(entry.name)] if value is True else [flag(entry.name), str(value)]
        return words

    def _shares(self, name: str) -> tuple[float, ...]:
        try:
            shares = tuple(dict.fromkeys(float(share) for share in getattr(self, name).split(",")))
        except ValueError:
            shares = ()
        self._require(all(0 < s <= 1 for s in shares) and shares != (), name, "shares in (0, 1], like '0.03,0.1'")
        return shares

    def _resolved_rate(self) -> float | str:
        """The rate as a number, which the command line gives as text; 'auto' only where a ladder decides."""
        if self.learning_rate == "auto":
            return "auto" if self.laddered else self.step_size
        try:
            return float(self.learning_rate)
        except (TypeError, ValueError):
            raise SettingsError(f"--learning-rate is {self.learning_rate!r}: it must be a number or 'auto'") from None

    def _refuse_foreign_options(self) -> None:
        """Refuse an option that the chosen kind or loss does not read."""
        foreign = {name: kinds for name, kinds in _OPTION_KINDS.items() if not self.reads(name)}
        self.refuse_idle({n: f"--kind {' or '.join(kinds)}, not to {self.kind}" for n, kinds in foreign.items()})
        self.refuse_idle(unread_options(self.loss))


_OPTION_KINDS: dict[str, tuple[str, ...]] = {entry.name: entry.metadata["kinds"] for entry in fields(ProbeSettings)}

KINDS: Registry[Kind] = Registry(
    "teachdiag.kinds",
    "kind of probe",
    {
        kind.name: kind
        for kind in (
            Kind(
                name="one_step",
                help="a step on the update batch beside its placebos",
                measured_by="teachdiag.diagnostics.probes.one_step:OneStep",
                analysed_by="teachdiag.analysis.kinds.one_step:OneStep",
                folders=("gains",),
                laddered=True,
                step=True,
            ),
            Kind(
                name="checkpoint",
                help="a student trained elsewhere",
                measured_by="teachdiag.diagnostics.probes.checkpoint:Checkpoint",
                analysed_by="teachdiag.analysis.kinds.checkpoint:Checkpoint",
                folders=("gains",),
                needs=("student_after",),
                step=True,
            ),
            Kind(
                name="placebo",
                help="the step with many draws of each placebo",
                measured_by="teachdiag.diagnostics.probes.placebo:Placebo",
                analysed_by="teachdiag.analysis.kinds.placebo:Placebo",
                folders=("gains",),
                laddered=True,
                draws=5,
                placebos=True,
            ),
            Kind(
                name="selectors",
                help="steps restricted to selected positions",
                measured_by="teachdiag.diagnostics.probes.selectors:Selectors",
                analysed_by="teachdiag.analysis.kinds.selectors:Selectors",
                folders=("interventions", "intervention_gains", "predictions"),
                optimizers=("sgd", "adamw"),
            ),
            Kind(
                name="efficiency",
                help="share of the whole batch's gain that each selector keeps, to first order",
                measured_by="teachdiag.diagnostics.probes.efficiency:Efficiency",
                analysed_by="teachdiag.analysis.kinds.efficiency:Efficiency",
                folders=("inner_products", "masked_steps", "masked_gains"),
                optimizers=("sgd", "adamw"),
                usual_rate=lambda settings: 2.5e-6 if settings.optimizer == "adamw" else 2.5e-4,
                laddered=True,
                copies=4,
            ),
            Kind(
                name="lds",
                help="steps restricted to random positions",
                measured_by="teachdiag.diagnostics.probes.lds:Lds",
                analysed_by="teachdiag.analysis.kinds.lds:Lds",
                folders=("interventions", "predictions"),
                optimizers=("sgd", "adamw"),
            ),
            Kind(
                name="isolated",
                help="one step on one position's loss at a time",
                measured_by="teachdiag.diagnostics.probes.isolated:Isolated",
                analysed_by="teachdiag.analysis.kinds.isolated:Isolated",
                folders=("isolated",),
                optimizers=("sgd",),
                usual_rate=lambda settings: 5e-4 if settings.match == "norm" else 1e-5,
                copies=4,
            ),
            Kind(
                name="predicted",
                help="first-order gains of every position",
                measured_by="teachdiag.diagnostics.probes.predicted:Predicted",
                analysed_by="teachdiag.analysis.kinds.predicted:Predicted",
                folders=("predictions",),
            ),
        )
    },
    declared_kind,
)


def kind_reads(kind: str, option: str) -> bool:
    """Whether a kind of probe reads an option."""
    return kind in (_OPTION_KINDS[option] or (kind,)) or option in KINDS[kind].options
