"""What `gpu.py` measures of one pair, in a process of its own: every group of rows stands alone, and may fail alone.

A row's share of the roofline is the least time that its arithmetic or its memory traffic could take, whichever is
longer, at the speeds of a large product and of a copy that were measured in the same process, by the time it took.
"""

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from random_pairs import REAL, SHAPES, TINY, Taken, Workload, random_pair, taken, unequal_contexts
from torch import Tensor
from workload import QUIET, bare_pass, write_contexts

from teachdiag.calibration import Calibration
from teachdiag.diagnostics.calibrate import (
    measured_speeds,
    parameters,
    recorded,
    score_anew,
)
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.models.alignment import Context, batched
from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.probes.derivatives import Along, Term, choose_step, derivatives
from teachdiag.diagnostics.probes.measurement import measurement
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0, bit_sums, inner, random_direction
from teachdiag.diagnostics.probes.updates import gradient, step_objective
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.diagnostics.scoring.statistics import statistics
from teachdiag.diagnostics.scoring.tiles import States, tiled, tiles
from teachdiag.peak_memory import peak_memory
from teachdiag.settings import CaptureSettings, ProbeSettings, TrainSettings

Row = dict[str, Any]
_FLOAT32, _HALF = 4, 2  # bytes
_LARGE_TILES = 4  # times the default, which is meant for the caches of CPUs


@dataclass
class Bench:
    """A pair of named shapes on a device, and the rows that were measured of it.

    Attributes:
        student: name of its shape.
        teacher: name of its shape.
        device: where everything runs.
        dtype: of the weights.
        workload: how much is measured.
        product: fastest product of two large matrices, FLOP/s.
        copy: fastest copy, bytes read and written in a second.
    """

    student: str
    teacher: str
    device: torch.device
    dtype: torch.dtype
    workload: Workload
    product: float = field(init=False)
    copy: float = field(init=False)

    def __post_init__(self) -> None:
        """Measure the limits."""
        size, numbers = (8192, 2**30) if self.device.type == "cuda" else (256, 2**20)
        a, b = (torch.randn(size, size, device=self.device).to(self.dtype) for _ in range(2))
        self.product = 2 * size**3 / taken(lambda: a @ b, self.device, 20).seconds
        held = torch.zeros(numbers, device=self.device)
        self.copy = 2 * numbers * _FLOAT32 / taken(held.clone, self.device, 10).seconds

    def pair(self, *, master: bool = False) -> Pair:
        """Make both models."""
        return random_pair(self.student, self.teacher, self.device, self.dtype, master=master)

    def capture(self) -> CaptureSettings:
        """Settings of a capture of the workload; sizes of batches and tiles are the product's own."""
        load, dtype = self.workload, str(self.dtype).removeprefix("torch.")
        prompts = {"bank_prompts": load.bank, "update_prompts": load.update}
        return CaptureSettings(**prompts, positions=load.response, max_new_tokens=load.response, dtype=dtype)

    def row(
        self,
        what: str,
        took: Taken,
        *,
        tokens: float = 0,
        flops: float = 0,
        moved: float = 0,
        beside: Taken | None = None,
        goal: str = "",
        **more: Any,  # noqa: ANN401
    ) -> Row:
        """One measurement; `beside` is what `ratio` is to, `flops` and `moved` bytes what it could not do without."""
        least = max(flops / self.product, moved / self.copy)
        return {
            "what": what,
            "milliseconds": took.seconds * 1e3,
            "tokens_per_second": tokens / took.seconds if tokens else None,
            "peak_gb": took.peak / 1e9 if took.peak else None,
            "ratio": took.seconds / beside.seconds if beside else None,
            "goal": goal,
            "roofline": least / took.seconds if least else None,
        } | more


def measure_pair(student: str, teacher: str, device: torch.device, save: Callable[[list[Row]], None]) -> None:
    """Measure every group of rows, and save all of them after each; one that fails leaves a row that says why."""
    bench = Bench(student, teacher, device, _dtype(device), TINY if student == "tiny" else REAL)
    rows = _limit_rows(bench)
    for title, group in GROUPS.items():
        try:
            rows += group(bench)
        except Exception as error:  # whatever a library raises on a machine that nobody has seen
            rows.append({"what": title, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"})
        save(rows)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _limit_rows(bench: Bench) -> list[Row]:
    named = str(bench.dtype).removeprefix("torch.")
    return [
        {"what": f"limit: a large product in {named}", "value": f"{bench.product / 1e12:.3g} TFLOP/s"},
        {"what": "limit: a copy, bytes read and written", "value": f"{bench.copy / 1e9:.4g} GB/s"},
    ]


@torch.no_grad()
def head_rows(bench: Bench) -> list[Row]:
    """Every statistic of rows whose hidden states are there, against the two bare products of the LM heads, by tile."""
    pair, settings = bench.pair(), bench.capture()
    rows, ids = bench.workload.contexts * bench.workload.response, pair.vocabulary
    heads = pair.student.head, pair.teacher.head
    hidden = [torch.randn(rows, h.weight.shape[1], device=bench.device).to(bench.dtype) for h in heads]
    tokens = torch.randint(ids, (rows,), device=bench.device)
    both = States(hidden[0], heads[0], hidden[1], heads[1])
    weights, stored = sum(h.weight.numel() for h in heads), 2 * rows * ids  # numbers; logits of both models
    width, found = heads[0].weight.element_size(), list[Row]()

    def every(product: Callable[[Tensor, Head], Tensor], size: int) -> None:
        for tile in tiles(rows, size):
            for states, head in zip(hidden, heads, strict=True):
                product(states[tile], head)

    for size in (settings.tile_positions, _LARGE_TILES * settings.tile_positions):
        products = partial(every, lambda states, head: F.linear(states, head.weight), size)
        logits = partial(every, lambda states, head: head(states), size)
        measured = partial(tiled, both, lambda z, w, part: statistics(z, w, tokens[part]), size)
        bare, ours, whole = (taken(work, bench.device) for work in (products, logits, measured))
        read = len(tiles(rows, size)) * weights * width
        work = {"tokens": rows, "flops": 2 * rows * weights}
        goal = "1.5" if bench.device.type == "cuda" else "2.0"
        once_each = read + 2 * stored * _FLOAT32  # logits written and read
        found += [
            bench.row(f"two bare head products, tiles of {size}", bare, **work, moved=read + stored * width),
            bench.row("  with float32 logits", ours, **work, moved=read + stored * _FLOAT32, beside=bare),
            bench.row("  head and every statistic", whole, **work, moved=once_each, beside=bare, goal=goal),
        ]
    return found


def capture_rows(bench: Bench) -> list[Row]:
    """Capture's exact scoring, files and all, against two bare passes over the same batches; and its rollouts."""
    pair, settings, load = bench.pair(), bench.capture(), bench.workload
    with _run(bench) as run:
        contexts = list(read_contexts(run, Positions.of(settings)))
        batches = batched(contexts, settings.batch_tokens)
        models = pair.student, pair.teacher
        bare = taken(lambda: [bare_pass(model, batch) for batch in batches for model in models], bench.device)
        scored = taken(lambda: score_anew(run, settings, pair), bench.device)
    read = sum(len(c.inputs("student")) for c in contexts)
    flops = 2 * read * sum(parameters(model) for model in models)
    new = min(load.response, 64)
    prompts, seeds = [c.student_prompt for c in contexts], [c.context_id for c in contexts]
    rollouts = taken(
        lambda: sample(pair.student, prompts, seeds, settings.sampling._replace(max_new_tokens=new)), bench.device, 1
    )
    return [
        bench.row("two bare forward passes, logits and all", bare, tokens=read, flops=flops),
        bench.row("exact scoring of the same batches", scored, tokens=read, flops=flops, beside=bare, goal="1.00"),
        bench.row(
            f"rollouts of {new} tokens",
            rollouts,
            tokens=new * len(contexts),
            moved=new * parameters(pair.student) * _HALF,
        ),
    ]


def probe_rows(bench: Bench) -> list[Row]:
    """The whole one_step probe with a draw of each placebo, and what it does that no pass of a model is."""
    with _probed(bench, ProbeSettings(learning_rate=1e-5, draws=1)) as setup:
        bare = _bare(bench, setup, setup.bank)
        results: dict[str, Any] = {}
        whole = taken(lambda: results.update(measurement(setup.settings).measure(setup)), bench.device, 1)
        checked = taken(lambda: bit_sums(setup.student), bench.device)
        drawn = taken(lambda: random_direction(setup.student, 0), bench.device, 1)
        twice = _agreement(setup)
        copy = parameters(setup.student) * _FLOAT32
        copies = f"{whole.peak / copy:.2f} copies of the student, goal 4" if whole.peak else ""
        rungs = len(results["ladder"]["rungs"])
        positions = len(setup.bank) * bench.workload.response
    return [
        bench.row("a bare student pass over the bank, autocast", bare),
        bench.row(f"one_step probe, {rungs} rungs", whole, tokens=positions, beside=bare, note=copies),
        bench.row("seeing that theta0 came back, bit for bit", checked, moved=copy, beside=bare),
        bench.row("a random direction, drawn on the CPU", drawn, beside=bare),
        {"what": "the gradient of the update batch, taken twice", "value": twice},
    ]


def _agreement(setup: ProbeSetup) -> str:
    """Say whether kernels add up in a fixed order: what a killed probe's second half would meet."""
    objective = step_objective(setup.update, setup.teacher, setup.settings)
    first, again = (gradient(setup.student, objective, setup.settings, QUIET) for _ in range(2))
    norm = inner(first, first) ** 0.5
    for ours, theirs in zip(first, again, strict=True):
        ours.sub_(theirs)
    apart = inner(first, first) ** 0.5
    return f"differs by {apart / norm:.1e} of its length" if apart else "the same to the last bit"


def prediction_rows(bench: Bench) -> list[Row]:
    """First-order gains of every position of the bank, against a bare pass of the student in float32."""
    with _probed(bench, ProbeSettings(kind="predicted", fix_contexts=min(4, bench.workload.update))) as setup:
        setup.student.half = None  # as the probe has it
        bare = _bare(bench, setup, setup.bank)
        positions = len(setup.bank) * bench.workload.response
        term = Term(position_loss("reverse_kl", {}), setup.teacher)
        direction = gradient(setup.student, setup.mean_kl(setup.update), setup.settings, QUIET)
        exact = Along(setup.student, setup.theta0, direction, None)
        predict = partial(
            derivatives, contexts=setup.bank, terms={"loss": term}, settings=setup.settings, reporter=QUIET
        )
        found: list[float] = []
        chosen = taken(lambda: found.append(choose_step(exact, setup.bank, term, setup.settings)[0]), bench.device, 1)
        central = taken(lambda: predict(replace(exact, step=found[0])), bench.device)
        forward = taken(lambda: predict(exact), bench.device)
    both = Taken(chosen.seconds + central.seconds, central.peak)
    return [
        bench.row("a bare student pass over the bank, float32", bare),
        bench.row(
            "first-order gains by central differences, step chosen", both, tokens=positions, beside=bare, goal="2.3"
        ),
        bench.row("first-order gains in forward mode", forward, tokens=positions, beside=bare),
    ]


def training_rows(bench: Bench) -> list[Row]:
    """A step of selective distillation at 5%, one on every position, and TRL's own, all without their rollouts."""
    try:
        from training_steps import step_of
    except ModuleNotFoundError as error:
        return [{"what": "training step", "value": f"not measured: {error.name} is not installed"}]
    load = bench.workload
    settings = TrainSettings(
        batch=load.update,
        micro_batch=load.update,
        max_new_tokens=load.response,
        dtype=str(bench.dtype).removeprefix("torch."),
        device=bench.device.type,
    )

    def step(trainer: str) -> Taken:
        gc.collect()  # the trainer before, beside which another pair may not fit
        rng, pair = np.random.default_rng(0), bench.pair(master=True)
        prompts = [rng.integers(pair.vocabulary - 1, size=load.prompt).tolist() for _ in range(load.update)]
        return step_of(pair, prompts, trainer, settings)

    tokens = load.update * load.response
    own, full, sparse = (step(trainer) for trainer in ("trl", "full", "learnable"))
    share = f"{sparse.peak / own.peak:.2f} of TRL's peak memory, goal 0.7" if own.peak and sparse.peak else ""
    return [
        bench.row("a step of TRL's DistillationTrainer, without rollouts", own, tokens=tokens),
        bench.row("a step of ours on every position", full, tokens=tokens, beside=own),
        bench.row(
            "a step of ours on 5% of the positions, selection and all",
            sparse,
            tokens=tokens,
            beside=own,
            goal="0.8",
            note=share,
        ),
    ]


def calibrated(student: str, teacher: str, device: torch.device) -> Calibration:
    """What `teachdiag calibrate` measures, of a pair of random weights."""
    bench = Bench(student, teacher, device, _dtype(device), TINY if student == "tiny" else REAL)
    pair, settings = bench.pair(), bench.capture()
    with _run(bench) as run:
        score_anew(run, settings, pair)
        speeds = measured_speeds(run, settings, pair)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
        return recorded(run, settings, pair, speeds, peak)


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {
    "head and statistics": head_rows,
    "capture": capture_rows,
    "one_step probe": probe_rows,
    "first-order gains": prediction_rows,
    "training step": training_rows,
}


@contextmanager
def _run(bench: Bench) -> Iterator[Path]:
    """A run directory that holds random contexts."""
    with tempfile.TemporaryDirectory() as folder:
        write_contexts(Path(folder), unequal_contexts(bench.workload, SHAPES[bench.student].vocabulary))
        yield Path(folder)


@contextmanager
def _probed(bench: Bench, settings: ProbeSettings) -> Iterator[ProbeSetup]:
    """A captured run of random contexts, and what a probe of it works with."""
    capture = bench.capture()
    with _run(bench) as run:
        score_anew(run, capture, bench.pair())
        contexts = list(read_contexts(run, Positions.of(capture)))
        splits = {split: [c for c in contexts if c.split == split] for split in ("bank", "update")}
        pair, groups = bench.pair(master=True), list(splits.values())
        student = pair.student
        states = compute_teacher_states(pair.teacher, groups, settings.batch_tokens, run / "teacher.npy", QUIET)
        del pair  # of the teacher only the head is needed
        yield ProbeSetup(
            run=run,
            probe_id="p",
            scratch=run / "scratch",
            settings=settings,
            capture=capture,
            student=student,
            teacher_model=None,
            teacher=states,
            theta0=Theta0(student),
            bank=splits["bank"],
            update=splits["update"],
            fix=splits["update"][: settings.fix_contexts],
            further=[],
            reporter=QUIET,
        )


def _bare(bench: Bench, setup: ProbeSetup, contexts: list[Context]) -> Taken:
    batches, student = setup.batched(contexts), setup.student
    with torch.autocast(bench.device.type, student.half or torch.bfloat16, enabled=student.half is not None):
        return taken(lambda: [bare_pass(student, batch) for batch in batches], bench.device)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
