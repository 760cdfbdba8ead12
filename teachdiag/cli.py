"""The command line: options to settings to one call a stage. Heavy imports happen inside the commands."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from teachdiag import __version__, preflight
from teachdiag.commands import (
    DEFAULT_RUN,
    Quiet,
    RunFolder,
    is_first,
    plain_command,
    run_folder,
    stage_command,
    uninterrupted,
)
from teachdiag.demo import demo_commands
from teachdiag.errors import InputError, RunError, SettingsError, place_error
from teachdiag.help_pages import HelpPage
from teachdiag.import_commands import importing
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, joining
from teachdiag.selectors import resolve_selector
from teachdiag.settings import (
    AnalyzeSettings,
    CalibrateSettings,
    CaptureSettings,
    CheckLossSettings,
    CompareTeachersSettings,
    EvaluateSettings,
    FiguresSettings,
    PlanSettings,
    ProbeSettings,
    ReportSettings,
    TimelineSettings,
    TrainSettings,
)
from teachdiag.terminal import (
    show_analysis,
    show_calibration,
    show_capture,
    show_figures,
    show_losses,
    show_models,
    show_plan,
    show_probe,
    show_report,
    show_teachers,
    show_timeline,
)

app = typer.Typer(
    help="Which of the teacher's token-level signals can this student actually learn?\n\nEach stage reads and writes a "
    "run directory. `teachdiag demo` shows them all on an embedded language model as teacher, and the same model "
    "without one layer as student, which are also what stages take without options.",
    epilog="Options and examples of a command: teachdiag COMMAND --help",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


_UsageError: Any = typer.BadParameter.__mro__[1]  # click's, which newer versions of typer hold themselves


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 the input is wrong (one sentence), 1 anything else."""
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        if is_first() and (
            said := " ".join(error.format_message().split())
        ):  # else its help was asked for, and is on the screen
            where = error.ctx.command_path if error.ctx else "teachdiag"
            print(f"teachdiag: {said.rstrip('.')}: see {where} --help", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        refused = error if isinstance(error, InputError) else place_error(error)
        if refused is None:
            raise
        if is_first():
            print(f"teachdiag: {refused}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _version(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command(cls=HelpPage)
def demo(run: RunFolder = DEFAULT_RUN, quiet: Quiet = False) -> None:
    """Capture, probe and analyze the embedded pair, by recipes that come with teachdiag: minutes on two CPU cores.

    Every command is shown before it runs; one that has run is not run again.

    Examples:
        teachdiag demo
        teachdiag demo --run runs/first
    """
    preflight.need("demo", "torch", "transformers", "accelerate", "gguf", "reasoning_gym")
    for words in demo_commands(run):
        Reporter(quiet=quiet).say(f"$ teachdiag {shlex.join(words)}")
        if code := app([*words, *(["--quiet"] if quiet else [])], standalone_mode=False):
            raise typer.Exit(code)


@stage_command(app, CaptureSettings, show_capture, tracked=True)
def capture(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    r"""Freeze student rollouts into a bank, and score student and teacher at every position of it.

    Examples:
        teachdiag capture
        teachdiag capture --run runs/qwen --student Qwen/Qwen3-0.6B \
            --teacher Qwen/Qwen3-8B --prompts gsm8k --bank-prompts 256
        teachdiag capture --run runs/verl --contexts verl.parquet \
            --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-8B \
            --prompts gsm8k --grade
    """
    _need_models()
    preflight.before_capture(run, settings)
    from teachdiag.diagnostics.capture import run_capture

    return run_capture(run, settings, reporter)


@stage_command(app, ProbeSettings, show_probe, tracked=True)
def probe(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Take steps from theta0, and measure how far each position of the bank moves towards the teacher.

    By default one optimizer step with its placebos. --kind asks otherwise: one position's loss at a time, first-order
    predictions for all of them, many placebos, or what each way of selecting positions gains.

    Examples:
        teachdiag probe
        teachdiag probe --run runs/qwen --kind isolated --sample 500
        teachdiag probe --run runs/qwen --kind selectors --selector learnable,random
    """
    _need_models()
    preflight.before_probe(run, settings)
    from teachdiag.diagnostics.probe import run_probe

    return run_probe(run, settings, reporter)


def _compare(runs: list[Path], settings: Any) -> Path | None:  # noqa: ANN401
    from teachdiag.figures.comparison import compare_runs

    everything = settings.compat == "none" if isinstance(settings, AnalyzeSettings) else not settings.only
    return compare_runs(runs)[0].parent if everything else None


@stage_command(app, AnalyzeSettings, show_analysis, many=True, together=_compare, tracked=True)
def analyze(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Ask whether teachability predicts the gains better than raw KL, beside the same numbers for every placebo.

    Examples:
        teachdiag analyze
        teachdiag analyze runs/seed0 runs/seed1 --draws 2000
        teachdiag analyze runs/released --compat released
    """
    preflight.before_reading(run)
    from teachdiag.analysis.analyze import run_analysis
    from teachdiag.analysis.released.analyze_released import run_released
    from teachdiag.figures.publish import publish

    if settings.compat == "released":
        return run_released(run, settings, reporter)
    _need_captured_bank(run)
    with joining(run):
        summary = run_analysis(run, settings, reporter)
        publish(run, reporter)
        if not any((run / "eval_scores").glob("*.parquet")):
            return summary
        if any(Stage(run, name).begun for name in ("train", "evaluate")):
            reporter.say(f"{run}: its training is unfinished, and left out")
        else:
            _analyze_training(run)
    return summary


def _print_names(wanted: bool) -> None:
    if not wanted:
        return
    from teachdiag.figures.printed_tables import TABLES
    from teachdiag.plots import PLOTS

    for plot in PLOTS.values():
        print(f"{plot.name} figure {plot.of}")
    for name, layout in TABLES.items():
        print(f"{name} table {layout.of}")
    raise typer.Exit


_LIST = {
    "list": (
        Annotated[
            bool,
            typer.Option(
                "--list",
                help="Print the name of every figure and table, and what it is of (the bank, a step, a kind of probe)",
                callback=_print_names,
                is_eager=True,
            ),
        ],
        False,
    )
}


@stage_command(app, FiguresSettings, show_figures, many=True, together=_compare, further=_LIST)
def figures(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Draw the figures and print the tables of an analysed run again, all or one.

    Examples:
        teachdiag figures
        teachdiag figures runs/qwen --only deciles
    """
    preflight.before_reading(run)
    from teachdiag.figures.publish import publish

    _need_captured_bank(run)
    return {"files": [str(file) for file in publish(run, reporter, settings.only)]}


def _side_by_side(runs: list[Path], settings: Any) -> Path:  # noqa: ANN401
    from teachdiag.figures.report.side_by_side import write_side_by_side

    return write_side_by_side(runs, settings)


@stage_command(app, ReportSettings, show_report, many=True, together=_side_by_side)
def report(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Write a self-contained HTML page: the headline, the evidence, and every token with what both models expected.

    Of several runs also one page with their headlines and tokens side by side.

    Examples:
        teachdiag report
        teachdiag report runs/qwen --contexts 20 --budget 0.05
        teachdiag report runs/seed0 runs/seed1
    """
    preflight.before_reading(run)
    from teachdiag.figures.report.html import write_report

    _need_captured_bank(run)
    return write_report(run, settings, reporter)


@stage_command(app, TrainSettings, show_models)
def train(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    r"""Distil the student on the positions that a selector keeps, and judge it beside base student and teacher.

    With --sweep, many arms, budgets and seeds. Works under `accelerate launch`, whose configuration says how models
    are sharded.

    Examples:
        teachdiag train --run runs/train --selector learnable --budget 0.1
        teachdiag train --run runs/testbed --sweep docs/train/testbed.toml
        teachdiag train --run runs/qwen --student Qwen/Qwen3-0.6B \
            --teacher Qwen/Qwen3-8B --prompts gsm8k --steps 200 --dtype bfloat16
    """
    preflight.need("train", "torch", "transformers", "accelerate", "trl", "datasets")
    preflight.before_train(run, settings)
    from teachdiag.diagnostics.train import run_train

    summary = run_train(run, settings, reporter)
    if is_first():
        _analyze_training(run)
    return summary


@stage_command(app, EvaluateSettings, show_models)
def evaluate(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Let models answer held-out prompts, and grade the answers: right, wrong, or unparseable.

    Examples:
        teachdiag evaluate embedded --run runs/judged
        teachdiag evaluate Qwen/Qwen3-0.6B Qwen/Qwen3-8B --prompts gsm8k
    """
    preflight.need("train", "torch", "transformers", "accelerate", "math_verify")
    preflight.before_evaluate(run, settings)
    from teachdiag.diagnostics.evaluate import run_evaluation

    summary = run_evaluation(run, settings, reporter)
    if is_first():
        _analyze_training(run)
    return summary


@plain_command(app, PlanSettings, show_plan)
def plan(settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """Foresee storage, model passes, memory and time of a run, and recommend a layout, or its size. It runs nothing.

    It extrapolates from what `teachdiag calibrate` measured on this machine, or from a reference, and says which.

    With --from, how many prompts, positions and hours it takes on a run's pair to tell an effect apart from 0 and from
    the nearest placebo, with 80% power, for each primary claim.

    Examples:
        teachdiag plan
        teachdiag plan --positions 1e9 --processes 8 --dtype bfloat16
        teachdiag plan --student-parameters 1.7e9 --teacher-parameters 8e9
        teachdiag plan --from runs/demo
        teachdiag plan --from runs/demo --detect 0.02 --claim "rank correlation"
    """
    if settings.from_:
        from teachdiag.analysis.report.prompts_needed import prompts_needed

        run = run_folder(settings.from_)
        preflight.before_reading(run)
        return prompts_needed(run, settings)
    from teachdiag.calibration import calibration_of
    from teachdiag.planning import plan as foresee

    return foresee(settings, calibration_of(settings.calibration))


@plain_command(app, CalibrateSettings, show_calibration)
def calibrate(settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """Measure what this machine takes for a token and a position, in minutes, for `teachdiag plan`.

    A small bank of the embedded pair, or of a pair of your own, is captured and thrown away.

    Examples:
        teachdiag calibrate
        teachdiag calibrate --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-8B
    """
    _need_models()
    preflight.before_calibrate(settings)
    from teachdiag.diagnostics.calibrate import run_calibration

    return run_calibration(settings, Reporter())


_UNTAUGHT = 3  # exit code of a loss that does not teach


@plain_command(
    app,
    CheckLossSettings,
    show_losses,
    recipe=False,
    code=lambda summary: 0 if all(loss["teaches"] for loss in summary["losses"]) else _UNTAUGHT,
)
def check_loss(settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """Say whether an OPD loss of your own teaches: its expected gradient beside those of both KLs, on a bank.

    The function is loss(student_logits, teacher_logits, token_ids, mask). Logits are float32, shape (sequences,
    length, vocabulary); token_ids, of shape (sequences, length), were drawn from these very rows of the student, so
    that nothing is left to be shifted; mask is True at them. It returns one number, or one a token.

    Exit codes: 0 every loss teaches, 3 one does not, 2 the input is wrong.

    Examples:
        teachdiag check-loss my_losses:opd
        teachdiag check-loss my_losses:opd my_losses:clipped --run runs/qwen --json
    """
    _need_models()
    preflight.before_reading(run_folder(settings.run))
    from teachdiag.diagnostics.check_loss import run_check_loss

    return run_check_loss(settings, Reporter())


@plain_command(app, TimelineSettings, show_timeline, recipe=False)
def timeline(settings: Any) -> dict[str, Any]:  # noqa: ANN401
    r"""Tell a monitored training on one page: how its signal is used up, and when selectors' masks change meaning.

    The folder is that of a teachdiag.Monitor with a canary. With --checkpoints, students of a training that is over
    are looked at first, and the untouched student before them.

    Examples:
        teachdiag timeline runs/watched
        teachdiag timeline runs/later --canary runs/qwen \
            --checkpoints out/checkpoint-100,out/checkpoint-200
    """
    folder = run_folder(settings.runs[0])
    for name in settings.selectors:
        resolve_selector(name)
    if settings.checkpoints:
        _need_models()
        preflight.before_reading(run_folder(settings.canary))
        from teachdiag.diagnostics.timeline import look_at_checkpoints

        look_at_checkpoints(folder, settings, Reporter())
    from teachdiag.analysis.training.timeline import run_timeline
    from teachdiag.figures.timeline import publish_timeline

    summary = run_timeline(folder, settings)
    return summary | {"page": str(publish_timeline(folder))}


@plain_command(app, CompareTeachersSettings, show_teachers, recipe=False)
def compare_teachers(settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """Compare teachers of one bank, token by token: how much each has to teach this student, and how much of it lands.

    One run has one teacher: capture the first as usual, and the others on its contexts (capture --contexts
    RUN/contexts). Loaded and served teachers mix. With --probe, also what a step towards each teacher gains, what
    selectors keep of that, and, of graded runs, what it does for success.

    Examples:
        teachdiag compare-teachers runs/4b runs/8b
        teachdiag compare-teachers runs/4b runs/8b --probe
        teachdiag compare-teachers runs/4b runs/8b runs/served --json
    """
    for run in settings.runs:
        preflight.before_reading(run_folder(run))
    from teachdiag.analysis.teachers.compare import run_compare_teachers

    if settings.probe:
        _probe_lacking(settings)
    return run_compare_teachers(settings)


def _probe_lacking(settings: CompareTeachersSettings) -> None:
    """Take the probes that runs of several teachers lack: those that find a rate, and then those at a common one."""
    _need_models()
    from teachdiag.analysis.teachers.compare import lacking_probes
    from teachdiag.diagnostics.probe import run_probe

    for _ in range(2):
        for run, wanted in lacking_probes(settings):
            Reporter().say(f"$ {shlex.join(['teachdiag', 'probe', '--run', str(run), *wanted.words()])}")
            preflight.before_probe(run, wanted)
            run_probe(run, wanted, Reporter())


@app.command(cls=HelpPage)
def push(
    run: Annotated[Path, typer.Argument(parser=run_folder, metavar="RUN", help="Run directory")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Data set on the Hub, such as me/my-run")] = "",
    to_folder: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the data set into this new folder instead")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a data set that is made")] = False,
    notes: Annotated[
        bool, typer.Option("--notes", help="Push the stages' notes too, which hold paths of this machine, as they are")
    ] = False,
) -> None:
    """Make a data set of a run's tables, on the Hub or in a folder: `datasets.load_dataset` reads each by its name.

    Examples:
        teachdiag push runs/qwen me/qwen-run
        teachdiag push runs/qwen --to-folder qwen-run
    """
    if bool(repo) == bool(to_folder):
        raise SettingsError("push takes either the name of a data set on the Hub, or --to-folder: give one of them")
    if repo:
        preflight.need("models", "huggingface_hub")
    from teachdiag.data_set import data_set, upload, write_folder

    with uninterrupted():
        data = data_set(run, notes=notes)
        place = upload(data, repo, public=public) if repo else str(to_folder)
        if to_folder:
            write_folder(data, to_folder)
    print(f"{run}: {len(data.files)} files in {place}, which datasets.load_dataset reads")
    if data.shortened:
        print(f"Of local paths the card has the last part: {', '.join(data.shortened)}")
    if notes:
        print("Stages' notes are in it as they are, with the paths of this machine that they hold.")


def _need_captured_bank(run: Path) -> None:
    """Refuse a run that holds a bank of the released code alone, for which there is one command."""
    if (run / "import.json").exists() and not (run / "capture.json").exists():
        raise RunError(
            f"{run} holds a bank that the released code scored: `teachdiag analyze {run} --compat released` writes all "
            "that there is of it, analysis/released/released.md and its tables"
        )


def _analyze_training(run: Path) -> None:
    from teachdiag.analysis.training.accuracy import analyze_training
    from teachdiag.figures.plots.accuracy import publish_training

    with joining(run):
        analyze_training(run)
        publish_training(run)


app.add_typer(importing, name="import")


def _need_models() -> None:
    preflight.need("models,prompts", "torch", "transformers", "accelerate")


if __name__ == "__main__":
    main()
