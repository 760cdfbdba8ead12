"""Answers to held-out prompts, sampled and graded: the table `eval_scores`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachdiag.adapters import adapter_config, is_adapter, local_adapter
from teachdiag.artefacts import EVAL_SCORES
from teachdiag.diagnostics.contexts.doubts import say_without_template
from teachdiag.diagnostics.contexts.sampling import check_prompts_fit, sample
from teachdiag.diagnostics.contexts.templates import (
    Options,
    encode_prompts,
    ids_digest,
    recorded_options,
    resolve_options,
)
from teachdiag.diagnostics.grading.grader import SECONDS, Grader, grader_of
from teachdiag.diagnostics.grading.grades import answer_text
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.pair import adapted
from teachdiag.diagnostics.models.sources import ModelSource, Outline, outline
from teachdiag.diagnostics.models.vocabulary import refuse_short_head
from teachdiag.diagnostics.models.weights import resolve_whole
from teachdiag.diagnostics.processes.collectives import gathered, on_first
from teachdiag.diagnostics.processes.devices import machine_facts, process_device
from teachdiag.diagnostics.processes.group import share_of
from teachdiag.diagnostics.processes.shared_stage import SharedStage, agree
from teachdiag.errors import ModelError, RunError
from teachdiag.manifests import Prompt, read_manifest
from teachdiag.progress import Reporter
from teachdiag.prompts import PromptSet, load_prompts, say_contradictory
from teachdiag.runs import Stage
from teachdiag.seeds import derive_seed
from teachdiag.settings import EvaluateSettings, ProtocolSettings
from teachdiag.tables import is_intact, refuse_strays, write_shard

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """The held-out prompts of a protocol, and how answers to them are sampled and judged."""

    settings: ProtocolSettings
    prompts: PromptSet
    held_out: Sequence[Prompt]
    grader: Grader
    options: Options

    def prompt_ids(self, tokenizer: Any, reporter: Reporter | None = None) -> list[tuple[int, ...]]:  # noqa: ANN401
        """Token ids of every held-out prompt, by a model's tokenizer and chat template.

        Raises:
            ContextError: one cannot be rendered.
        """
        named = [(prompt.prompt_id, self.prompts.manifest.student_messages(prompt)) for prompt in self.held_out]
        return encode_prompts(tokenizer, named, self.options, reporter)

    def fitting(self, model: LanguageModel | Outline, reporter: Reporter | None = None) -> list[tuple[int, ...]]:
        """Token ids of every held-out prompt, each of which leaves a model room for its answer.

        Raises:
            ContextError: one does not, or cannot be rendered.
        """
        rendered = self.prompt_ids(model.tokenizer, reporter)
        named = [(prompt.prompt_id, ids) for prompt, ids in zip(self.held_out, rendered, strict=True)]
        check_prompts_fit(named, model, self.settings.eval_max_new_tokens, "--eval-max-new-tokens")
        return rendered

    def facts(self, prompts: Iterable[Sequence[int]]) -> dict[str, Any]:
        """What a stage records of its prompts, `prompts` being their token ids."""
        return self.prompts.left_out | {
            "manifest": self.prompts.manifest.id,
            "content_sha256": self.prompts.content_sha256,
            "template_options": self.options,
            "token_ids_sha256": ids_digest(prompts),
        }

    def answers(self, model: LanguageModel, reporter: Reporter, label: str) -> list[Row]:
        """Sample and grade every answer of one model: rows of `eval_scores` without arm, budget and seed.

        The random numbers of an answer depend on its prompt and number alone, so that models are compared on the same.

        Raises:
            ContextError: a prompt is too long for the model.
        """
        settings = self.settings
        questions = [
            (prompt, ids, number, derive_seed(settings.prompt_seed, "answer", prompt.prompt_id, number))
            for prompt, ids in zip(self.held_out, self.fitting(model), strict=True)
            for number in range(settings.eval_samples)
        ]
        share = share_of(questions)
        rows: list[Row] = []
        with reporter.bar(f"Answers of {label}", total=len(share)) as advance:
            for start in range(0, len(share), settings.eval_batch):
                group = share[start : start + settings.eval_batch]
                _, prompts, _, seeds = zip(*group, strict=True)
                rollouts = sample(model, prompts, seeds, settings.answering)
                for (prompt, ids, number, seed), rollout in zip(group, rollouts, strict=True):
                    text = answer_text(model.tokenizer, ids, rollout.token_ids)
                    verdict = self.grader.judge(prompt, text, cut=rollout.finish_reason == "length")
                    rows.append(
                        {
                            "benchmark": self.prompts.manifest.id,
                            "prompt_id": prompt.prompt_id,
                            "sample": number,
                            "outcome": verdict.outcome,
                            "given_up": verdict.given_up,
                            "answer_tokens": len(rollout.token_ids),
                            "finish_reason": rollout.finish_reason,
                            "sampling_seed": seed,
                        }
                    )
                advance(len(group))
        rows = gathered(rows, lambda row: (row["prompt_id"], row["sample"]))
        if given_up := sum(row["given_up"] for row in rows):
            reporter.say(f"{label}: {given_up} answers could not be judged within {SECONDS:g} s, and are unparseable")
        return rows


def draw_benchmark(settings: ProtocolSettings, prompts: PromptSet, options: Options) -> Benchmark:
    """Draw the held-out prompts, the same ones for the same `prompt_seed` whatever else is drawn.

    Raises:
        EstimationError: the source has too few distinct prompts.
        ManifestError: it has no answers to grade by, or one of those held out cannot be read.
    """
    held_out, _ = prompts.draw(settings.eval_prompts, 0, settings.prompt_seed)
    grader = grader_of(prompts.manifest)
    grader.check(held_out)
    return Benchmark(settings, prompts, held_out, grader, options)


def resolve_benchmark(
    stage: Stage, settings: ProtocolSettings, prompts: PromptSet, tokenizers: Mapping[str, Any], reporter: Reporter
) -> Benchmark:
    """Draw the held-out prompts, with the options of the chat templates that a stage recorded, or that are asked for.

    Args:
        stage: whose earlier start may have recorded the date.
        settings: the protocol.
        prompts: the source.
        tokenizers: of the models that are to answer, by their names.
        reporter: told of questions that are left out, and of models without a chat template.

    Raises:
        InputError: as `resolve_options` and `draw_benchmark`.
    """
    say_contradictory(prompts, reporter)
    for name, tokenizer in tokenizers.items():
        say_without_template(name, tokenizer, reporter)
    defaults, recorded = prompts.manifest.template_options, recorded_options(stage, settings)
    options = resolve_options(settings.template_options, tokenizers, defaults, recorded, reporter)
    return draw_benchmark(settings, prompts, options)


def run_evaluation(run: Path, settings: EvaluateSettings, reporter: Reporter) -> dict[str, Any]:
    """Let models answer the held-out prompts and grade them; continue where a killed run stopped.

    Works under `torchrun` and `accelerate launch`: the processes share the answers out.

    Returns:
        The stage's summary: for each model the shares of right and unparseable answers.

    Raises:
        InputError: anything that the user can mend; nothing already computed is lost.
    """
    agree(settings.as_dict())
    stage = SharedStage(run, "evaluate", tables=("eval_scores",))
    with stage.held():
        refuse_beside(run, "train")
        device = process_device(settings.device)
        prompts = on_first(load_prompts)(read_manifest(settings.prompts), settings.data_file)
        sources = on_first(_resolve_models)(settings, reporter)
        benchmark, inputs = on_first(_plan)(stage, settings, prompts, sources, reporter)
        if stage.claim(settings.as_dict(), inputs, machine_facts(device)):
            reporter.say(f"{run}: evaluation is complete")
            return dict(stage.require()["results"])
        paths = [run / "eval_scores" / f"model-{number:03d}.parquet" for number in range(len(sources))]
        on_first(refuse_strays)(run / "eval_scores", paths)
        with stage.timed():
            for path, (name, source) in zip(paths, sources.items(), strict=True):
                columns = {"arm": name, "budget": None, "seed": None}
                evaluate_model(benchmark, source, device, path, name, columns, reporter)
            results = {"models": shares(run)}
            stage.complete(results)
    return results


def _resolve_models(settings: EvaluateSettings, reporter: Reporter) -> dict[str, ModelSource]:
    return {name: _resolve_model(name, settings, reporter) for name in settings.models}


def _resolve_model(name: str, settings: EvaluateSettings, reporter: Reporter) -> ModelSource:
    """Find a model; that of an adapter is the one that it names."""
    if not is_adapter(Path(name)):
        return resolve_whole(name, settings.revision, (), reporter, settings.trust_remote_code)
    named = str(adapter_config(local_adapter(name)).get("base_model_name_or_path") or "")
    if not named:
        raise ModelError(f"adapter {name!r} does not name its model: put it into its adapter_config.json")
    model = resolve_whole(named, settings.revision, (), reporter, settings.trust_remote_code)
    return adapted(model, name, reporter)


def _plan(
    stage: Stage,
    settings: EvaluateSettings,
    prompts: PromptSet,
    sources: Mapping[str, ModelSource],
    reporter: Reporter,
) -> tuple[Benchmark, dict[str, Any]]:
    """Draw the held-out prompts; return them with what goes into the stage."""
    outlines = {name: outline(source) for name, source in sources.items()}
    for model in outlines.values():
        refuse_short_head(model)
    tokenizers = {name: model.tokenizer for name, model in outlines.items()}
    benchmark = resolve_benchmark(stage, settings, prompts, tokenizers, reporter)
    return benchmark, {
        "models": {name: source.whole_digest for name, source in sources.items()},
        "prompts": benchmark.facts(ids for model in outlines.values() for ids in benchmark.fitting(model, reporter)),
    }


def evaluate_model(
    benchmark: Benchmark,
    source: ModelSource,
    device: str,
    path: Path,
    name: str,
    columns: Row,
    reporter: Reporter,
    further_ends: frozenset[int] = frozenset(),
) -> None:
    """Let a model answer, unless it has, and write its shard of `eval_scores`; several processes share its answers.

    Args:
        benchmark: the held-out prompts.
        source: the model.
        device: where it answers.
        path: of the shard.
        name: what its progress bar calls it.
        columns: `arm`, `budget` and `seed` of its rows.
        reporter: progress.
        further_ends: tokens that end an answer, beside the model's own.
    """
    if on_first(is_intact)(path):
        return
    model = load(source, benchmark.settings.dtype, device)
    model.end_with(model.end_ids | further_ends)
    rows = benchmark.answers(model, reporter, name)
    on_first(write_shard)(EVAL_SCORES.build_rows([row | columns for row in rows]), path)


@on_first
def refuse_beside(run: Path, other: str) -> None:
    """Refuse a run that holds the answers of another stage, which would be taken for this one's.

    Raises:
        RunError: it does.
    """
    if Stage(run, other).note.exists():
        raise RunError(f"{run} holds the answers of `teachdiag {other}`: choose another --run")


@on_first
def shares(run: Path) -> list[Row]:
    """Return the share of right and of unparseable answers of each arm, budget and seed of a run."""
    scores = EVAL_SCORES.read(run / "eval_scores", ["arm", "budget", "seed", "outcome"])
    by = scores.groupby(["arm", "budget", "seed"], dropna=False, sort=False)["outcome"]
    counted = by.agg(right=lambda o: (o == "right").mean(), unparseable=lambda o: (o == "unparseable").mean())
    rows = counted.reset_index()
    rows[["budget", "seed"]] = rows[["budget", "seed"]].astype(object).where(rows[["budget", "seed"]].notna(), None)
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
