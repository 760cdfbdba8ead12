"""Training stage: sweeps that are paired, resume, and are judged; the real pair; what is refused.

The truth: sweeps that were not killed, one process, and models judged again on their own.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from in_ranks import command
from processes import in_processes
from safetensors.torch import load_file
from stages import ROOT, WORLDS, Killed, dying, tables
from tiny_pair import byte_tokenizer, save_model
from trl import DistillationConfig

from teachdiag.analysis.training.accuracy import analyze_training
from teachdiag.analysis.training.training_block import training_block
from teachdiag.diagnostics import train as stage
from teachdiag.diagnostics.evaluate import run_evaluation
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.training.distillation import _arguments, _told, check_arguments
from teachdiag.errors import ContextError, InputError, ModelError, RunError, SettingsError
from teachdiag.figures.plots.accuracy import publish_training
from teachdiag.preflight import before_train
from teachdiag.progress import Reporter
from teachdiag.settings import EvaluateSettings, TrainSettings
from teachdiag.settings.training import TRL_KEYS_TAKEN
from teachdiag.sweeps import plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning", "ignore::FutureWarning"),
]

SWEEP = """
[sweep]
arms = ["full", "random", "soft"]
budgets = [0.2]
seeds = 2
[arms.soft]
selector = "learnable"
soft = true
"""


@pytest.fixture(scope="module")
def small(student_path: str, teacher_path: str, manifest_path: str) -> TrainSettings:
    return TrainSettings(
        student=student_path,
        teacher=teacher_path,
        prompts=manifest_path,
        train_prompts=8,
        eval_prompts=9,
        eval_samples=2,
        eval_max_new_tokens=6,
        steps=2,
        batch=4,
        micro_batch=2,
        max_new_tokens=8,
        learning_rate=1e-3,
        device="cpu",
    )


@pytest.fixture(scope="module")
def two_micro_batches(small: TrainSettings) -> TrainSettings:
    """Of two processes each."""
    return replace(small, batch=8)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory, two_micro_batches: TrainSettings) -> Path:
    """That training by one process, to be read alone."""
    run = tmp_path_factory.mktemp("by-one") / "run"
    stage.run_train(run, two_micro_batches, Reporter(quiet=True))
    return run


def _swept(small: TrainSettings, folder: Path, recipe: str = SWEEP, **own: object) -> TrainSettings:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.toml").write_text(recipe)
    return TrainSettings(**small.as_dict() | {"sweep": str(folder / "sweep.toml")} | own)


def test_a_sweep_pairs_its_arms_and_continues_where_it_was_killed(
    small: TrainSettings, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _swept(small, tmp_path)
    whole = stage.run_train(tmp_path / "whole", settings, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "distil", dying(stage.distil, 3))
        with pytest.raises(Killed):
            stage.run_train(tmp_path / "killed", settings, quiet)
    assert len(list((tmp_path / "killed/train_steps").glob("*.parquet"))) == 3
    assert stage.run_train(tmp_path / "killed", settings, quiet) == whole
    ours, theirs = (tables(tmp_path / name) for name in ("killed", "whole"))
    assert ours == theirs

    steps = pd.read_parquet(tmp_path / "whole/train_steps")
    assert len(steps) == 3 * 2 * settings.steps
    first = steps[steps["step"] == 1].set_index(["seed", "arm"])
    mean = first["forward_kl_kept"] * first["keep"] + first["forward_kl_dropped"].fillna(0) * (1 - first["keep"])
    for _, own in mean.groupby("seed"):  # equal rollouts, before weights move apart
        np.testing.assert_allclose(own, own.iloc[0], rtol=1e-5)
    assert mean.groupby("seed").first().nunique() == 2
    assert (steps["update_norm"] > 0).all()
    scores = pd.read_parquet(tmp_path / "whole/eval_scores")
    assert set(scores["arm"]) == {"base", "teacher", "full", "random", "soft"}
    assert (scores.groupby(["arm", "seed"], dropna=False).size() == 9 * 2).all()
    with pytest.raises(RunError, match="was made with another configuration"):
        stage.run_train(tmp_path / "whole", _swept(small, tmp_path, steps=3), quiet)

    found = analyze_training(tmp_path / "whole")
    assert set(found["against"]) == {"", "full", "random", "base"}
    names = {file.name for file in publish_training(tmp_path / "whole")}
    assert {"training.md", "training_budgets.csv", "accuracy.png"} <= names
    block = training_block(tmp_path / "whole")
    assert "2 training seeds, paired. Judged by 2 answers to each of 9 held-out `sums` problems" in block
    assert "| full |" in block


def test_an_adapter_is_trained_saved_and_judged_alone(small: TrainSettings, tmp_path: Path, quiet: Reporter) -> None:
    settings = replace(small, lora="r=2,target=v_proj+down_proj", steps=1, selector="full")
    stage.run_train(tmp_path / "run", settings, quiet)
    student = tmp_path / "run/students/full-100pct-seed0"
    assert not (student / "config.json").exists()
    held = load_file(student / "adapter_model.safetensors")
    moved = torch.cat([weight.flatten() for name, weight in held.items() if ".lora_B." in name])
    assert len(held) == 2 * 2 * 2
    # With B at 0 the gradient of A is 0, and AdamW's first step moves every weight of B by the learning rate.
    assert moved.abs().numpy() == pytest.approx(1e-3, rel=1e-2)
    steps = pd.read_parquet(tmp_path / "run/train_steps")
    assert steps["update_norm"].item() == pytest.approx(1e-3 * len(moved) ** 0.5, rel=1e-2)
    protocol = {name: getattr(small, name) for name in ("prompts", "eval_prompts", "eval_samples", "device")}
    again = EvaluateSettings(models=[str(student)], eval_max_new_tokens=small.eval_max_new_tokens, **protocol)
    run_evaluation(tmp_path / "again", again, quiet)
    ours, theirs = (pd.read_parquet(tmp_path / name / "eval_scores") for name in ("run", "again"))
    own = ours[ours["arm"] == "full"].drop(columns=["arm", "budget", "seed"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(own, theirs.drop(columns=["arm", "budget", "seed"]))
    with pytest.raises(ModelError, match="has no linear layer called x_proj"):
        stage.run_train(tmp_path / "other", replace(settings, lora="target=v_proj+x_proj"), quiet)


def test_workers_and_judging_again_give_the_same_tables(small: TrainSettings, tmp_path: Path, quiet: Reporter) -> None:
    recipe = SWEEP.replace('"full", "random", "soft"', '"full"').partition("[arms")[0]
    for name, workers in (("one", 1), ("two", 2)):
        stage.run_train(tmp_path / name, _swept(small, tmp_path, recipe, workers=workers), quiet)
    one, two = (pd.read_parquet(tmp_path / name / "eval_scores") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
    protocol = {
        name: getattr(small, name)
        for name in ("prompts", "eval_prompts", "eval_samples", "eval_max_new_tokens", "device")
    }
    student = str(tmp_path / "one/students/full-100pct-seed1")
    run_evaluation(tmp_path / "again", EvaluateSettings(models=[student, small.student], **protocol), quiet)
    again = pd.read_parquet(tmp_path / "again/eval_scores")
    told = ["prompt_id", "sample", "outcome", "answer_tokens", "sampling_seed"]
    for arm, model in (("full", student), ("base", small.student)):
        theirs = one[(one["arm"] == arm) & (one["seed"].isna() | (one["seed"] == 1))]
        mine = again[again["arm"] == model]
        pd.testing.assert_frame_equal(theirs[told].reset_index(drop=True), mine[told].reset_index(drop=True))


def test_an_interrupted_run_continues_from_its_checkpoint(
    small: TrainSettings, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer as Trainer

    settings = TrainSettings(**small.as_dict() | {"steps": 4, "save_steps": 2, "selector": "random"})
    stage.run_train(tmp_path / "whole", settings, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_weigh", dying(Trainer._weigh, 3))
        with pytest.raises(Killed):
            stage.run_train(tmp_path / "killed", settings, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_weigh", dying(Trainer._weigh, 2))  # only the two steps that are left
        stage.run_train(tmp_path / "killed", settings, quiet)
    ours, theirs = (pd.read_parquet(tmp_path / name / "train_steps") for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)


def test_ta_opd_on_the_embedded_pair(tmp_path: Path, quiet: Reporter) -> None:
    """Two real steps at 10%, saved, loaded again, and judged."""
    settings = TrainSettings(
        steps=2, batch=2, micro_batch=2, max_new_tokens=16, train_prompts=4,
        eval_prompts=1, eval_samples=1, eval_max_new_tokens=8,
    )  # fmt: skip
    summary = stage.run_train(tmp_path / "run", settings, quiet)
    steps = pd.read_parquet(tmp_path / "run/train_steps")
    assert steps["step"].tolist() == [1, 2]
    assert steps["keep"].between(0.1, 0.15).all()
    assert (steps["learnable_kept"] > steps["learnable_dropped"]).all()
    assert (tmp_path / "run/students/learnable-10pct-seed0/model.safetensors").exists()
    assert {row["arm"] for row in summary["models"]} == {"base", "teacher", "learnable"}
    scores = pd.read_parquet(tmp_path / "run/eval_scores")
    assert set(scores["outcome"]) <= {"right", "wrong", "unparseable"}


def _command(small: TrainSettings, run: Path) -> list[str]:
    given = {k: v for k, v in small.as_dict().items() if k not in ("sweep", "keep", "soft")}
    named = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value is not False}
    options = [word for name, value in named.items() for word in ([name] if value is True else [name, str(value)])]
    return ["train", "--run", str(run), *options, "--quiet"]


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_train_and_judge_as_one(
    two_micro_batches: TrainSettings, by_one: Path, tmp_path: Path, sharded: bool
) -> None:
    """Sharded: with the documented FSDP2 configuration, started as a user starts it."""
    words = _command(two_micro_batches, tmp_path / "two")
    if sharded:
        accelerate = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2")
        script = ("--config_file", str(ROOT / "docs/train/fsdp2.yaml"), str(WORLDS / "fsdp_on_cpu.py"))
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [*accelerate, *script, *words], capture_output=True, text=True, env=environment, timeout=300
        )
    else:
        done = in_processes(2, command, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    if sharded:
        assert "sharded: FSDP" in done.stderr
    for table in ("train_steps", "eval_scores"):
        one, two = (pd.read_parquet(run / table) for run in (by_one, tmp_path / "two"))
        pd.testing.assert_frame_equal(one, two, rtol=2e-3)


def test_two_processes_evaluate_as_one(small: TrainSettings, tmp_path: Path) -> None:
    """The same bytes, and the first process alone analyses them."""
    few = ["--eval-prompts", "3", "--eval-max-new-tokens", "6", "--quiet"]
    words = ["evaluate", small.student, small.teacher, "--prompts", small.prompts, *few]
    for processes in (1, 2):
        done = in_processes(processes, command, *words, "--run", str(tmp_path / str(processes)))
        assert done.returncode == 0, done.stderr[-3000:]
    assert tables(tmp_path / "1") == tables(tmp_path / "2")
    assert (tmp_path / "1/evaluate.json").read_bytes() == (tmp_path / "2/evaluate.json").read_bytes()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("[sweep]\narms = ['full']\nbudgets = [0.1]\nseeds = 1\nrhos = [2]", "unknown entries rhos"),
        ("[sweep]\narms = ['full']\nbudgets = [0.1]", "needs seeds, a whole number"),
        ("[sweep]\narms = ['learnble']\nbudgets = [0.1]\nseeds = 1", "no selector 'learnble': did you mean learnable"),
        ("[sweep]\narms = ['random']\nbudgets = [0]\nseeds = 1", "arm random at budget 0.0: --budget is 0.0"),
        ("[sweep]\narms = ['a']\nbudgets = [1]\nseeds = 1\n[arms.a]\nselectr = 'q3'", "no option selectr of its"),
        ("[sweep", "is not TOML"),
        ("[sweep]\narms = ['predicted']\nbudgets = [0.1]\nseeds = 1", "arm predicted: .* which only a probe measures"),
    ],
)  # fmt: skip
def test_recipes_that_are_none(small: TrainSettings, tmp_path: Path, recipe: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(_swept(small, tmp_path, recipe))


def test_full_distillation_is_one_cell_a_seed(small: TrainSettings, tmp_path: Path) -> None:
    recipe = "[sweep]\narms = ['full', 'random']\nbudgets = [0.1, 0.3]\nseeds = 2"
    names = [cell.name for cell in plan(_swept(small, tmp_path, recipe))]
    assert names == [
        f"{arm}-seed{seed}" for seed in (0, 1) for arm in ("full-100pct", "random-10pct", "random-30pct")
    ]  # fmt: skip


def test_what_cannot_be_trained_is_refused_before_it_begins(
    small: TrainSettings, tmp_path: Path, quiet: Reporter, student_path: str
) -> None:
    def refused(message: str, error: type[InputError], **own: object) -> None:
        with pytest.raises(error, match=message):
            stage.run_train(tmp_path / "run", TrainSettings(**small.as_dict() | own), quiet)

    refused("so there is nothing to learn", ModelError, teacher=student_path)
    swapped = save_model(tmp_path / "swapped", seed=4, tokenizer=byte_tokenizer(swap=True))
    refused("do not share a vocabulary: 2 ids differ", ModelError, teacher=swapped)
    assert not (tmp_path / "run").exists()
    refused("too few for", InputError, train_prompts=100)
    refused("--trl sets betta, which TRL", SettingsError, trl='{"betta": 1}')
    refused("--budget is 0", SettingsError, budget=0.0)
    refused("it must be a JSON object", SettingsError, trl="beta=1")
    assert not list((tmp_path / "run").rglob("train_steps/*.parquet"))


@pytest.mark.parametrize("trl", ["", '{"use_vllm": false, "adam_beta2": 0.99, "optim": "adamw_torch"}'])
def test_trl_gets_our_settings_and_what_is_given_beside_them(small: TrainSettings, tmp_path: Path, trl: str) -> None:
    found = _arguments(replace(small, trl=trl, learning_rate=2e-4, steps=7, top_k=5), tmp_path)
    assert (found.learning_rate, found.max_steps, found.top_k, found.output_dir) == (2e-4, 7, 5, str(tmp_path))
    assert found.adam_beta2 == (0.99 if trl else 0.999)


def test_every_setting_of_ours_is_refused_in_trl(small: TrainSettings, tmp_path: Path) -> None:
    given: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachdiag.diagnostics.training.distillation.DistillationConfig", lambda **own: given.update(own))
        patch.setattr("teachdiag.diagnostics.training.distillation.get_type_hints", lambda _: {})
        _arguments(small, tmp_path)
    assert given.keys() <= TRL_KEYS_TAKEN.keys()
    for name in (*given, "eval_steps"):
        with pytest.raises(SettingsError, match=f"--trl sets {name}, which teachdiag sets itself: "):
            replace(small, trl=json.dumps({name: given.get(name)}))


@pytest.mark.parametrize(
    ("trl", "message"),
    [
        ({"use_vlm": True}, "--trl sets use_vlm, which TRL .* does not know: did you mean use_vllm"),
        ({"qqq": 1}, "--trl sets qqq, which TRL .* does not know: see trl.DistillationConfig"),
        ({"use_vllm": 1}, "--trl sets use_vllm to 1: it must be true or false"),
        ({"adam_beta1": "0.9"}, "--trl sets adam_beta1 to '0.9': it must be a number"),
        ({"adam_beta1": True}, "--trl sets adam_beta1 to True: it must be a number"),
        ({"gradient_checkpointing_kwargs": [1]}, "it must be a table or text"),
        ({"optim": "fastest"}, "TRL refuses the settings: "),
        ({"deepspeed": "/no/such/file.json"}, "TRL refuses the settings: "),
        ({"min_p": 0.1}, "--trl sets min_p, which only vLLM reads"),
    ],
)
def test_what_trl_would_take_wrongly_is_refused_before_models_are_loaded(
    trl: dict, message: str, small: TrainSettings
) -> None:
    with pytest.raises(SettingsError, match=message):
        check_arguments(replace(small, trl=json.dumps(trl)))


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_that_is_not_installed_is_refused(
    name: str, small: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()  # what an earlier run may have left is no package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=f"--report-to needs {name}, which is not installed"):
        before_train(tmp_path / "run", replace(small, report_to=name))
    with pytest.raises(SettingsError, match="--trl use_vllm needs vllm, which is not installed"):
        before_train(tmp_path / "run", replace(small, trl='{"use_vllm": true}'))
    with pytest.raises(SettingsError, match="--report-to is 'abacus': it must be one of none, trackio, wandb"):
        replace(small, report_to="abacus")


def test_train_and_evaluate_keep_to_runs_of_their_own(small: TrainSettings, tmp_path: Path, quiet: Reporter) -> None:
    """Both write `eval_scores`; neither tells to delete what the other made."""
    for theirs, start in (
        ("train", lambda run: run_evaluation(run, EvaluateSettings(models=["embedded"], prompts=small.prompts), quiet)),
        ("evaluate", lambda run: stage.run_train(run, small, quiet)),
    ):
        run = tmp_path / theirs
        run.mkdir()
        (run / f"{theirs}.json").write_text("{}")
        with pytest.raises(RunError, match=rf"holds the answers of `teachdiag {theirs}`: choose another --run"):
            start(run)
        assert not (run / "eval_scores").exists()


@pytest.mark.parametrize(
    ("longer", "option"),
    [({"max_new_tokens": 250}, "--max-new-tokens"), ({"eval_max_new_tokens": 250}, "--eval-max-new-tokens")],
)
def test_training_beyond_the_models_context_is_refused_at_once(
    small: TrainSettings, tmp_path: Path, quiet: Reporter, longer: dict, option: str
) -> None:
    said = rf"prompt sums/\w+ has \d+ tokens; with 250 for the response it exceeds the 256 that .* smaller {option}$"
    with pytest.raises(ContextError, match=said):
        stage.run_train(tmp_path / "run", TrainSettings(**small.as_dict() | longer), quiet)
    assert not (tmp_path / "run/train.json").exists()


@pytest.mark.parametrize(
    ("arms", "budgets", "said"),
    [
        (
            '["a b", "a/b"]',
            "[0.2]",
            "arm a b at budget 0.2 and arm a/b at budget 0.2 would both be files named a-b-20pct",
        ),
        ('["full", "FULL"]', "[0.2]", "arm full at budget 1.0 and arm FULL at budget 1.0 would both be files"),
        ('["a b"]', "[0.12345671, 0.12345672]", "arm a b at budget 0.12345671 and arm a b at budget 0.12345672"),
        ('["base"]', "[0.2]", "base names a model that is not trained: give that arm another name"),
    ],
)
def test_two_cells_of_one_name_are_refused(
    small: TrainSettings, tmp_path: Path, arms: str, budgets: str, said: str
) -> None:
    tables = "".join(f'[arms."{arm}"]\nselector = "full"\n' for arm in ("FULL",) if arm in arms)
    tables += "".join(f'[arms."{arm}"]\nselector = "random"\n' for arm in ("a b", "a/b", "base") if f'"{arm}"' in arms)
    recipe = f"[sweep]\narms = {arms}\nbudgets = {budgets}\nseeds = 1\n{tables}"
    with pytest.raises(SettingsError, match=said):
        plan(_swept(small, tmp_path, recipe))


@pytest.mark.parametrize("place", ["eval_scores/extra.parquet", "train_steps/part-00000.parquet"])
def test_a_stray_or_damaged_shard_of_a_training_is_not_counted(
    small: TrainSettings, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "distil", dying(stage.distil, 0))
        with pytest.raises(Killed):
            stage.run_train(tmp_path / "run", small, quiet)
    base, stray = tmp_path / "run/eval_scores/base.parquet", tmp_path / "run" / place
    stray.parent.mkdir(exist_ok=True)
    shutil.copy(base, stray)
    with pytest.raises(RunError, match=f"{place} was not written by this stage"):
        stage.run_train(tmp_path / "run", small, quiet)
    stray.unlink()
    whole = base.read_bytes()
    base.write_bytes(whole[:-9] + bytes(9))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "distil", dying(stage.distil, 0))
        with pytest.raises(Killed):
            stage.run_train(tmp_path / "run", small, quiet)
    assert base.read_bytes() == whole  # made again


def test_what_torch_raises_at_trl_settings_is_told(small: TrainSettings) -> None:
    def fail(trl: str, error: type[Exception] = RuntimeError) -> None:
        with _told(replace(small, trl=trl)):
            raise error("normal expects std >= 0")

    with pytest.raises(
        SettingsError, match=r'training fails with --trl .*"neftune_noise_alpha": -1.*RuntimeError: normal'
    ):
        fail('{"neftune_noise_alpha": -1}')
    for trl, error in (("", RuntimeError), ('{"adam_beta2": 0.9}', torch.OutOfMemoryError)):
        with pytest.raises(error):
            fail(trl, error)


def test_nothing_of_a_trainer_is_left_when_its_student_is_judged(
    small: TrainSettings, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer and its optimizer hold one another, on a GPU with weights, gradients and moments, until Python looks.

    Python looks when it likes, which here is never.
    """
    held: list[weakref.ref[torch.nn.Module]] = []
    alive: dict[str, list[bool]] = {}
    train, judge = stage.distil, stage.evaluate_model

    def trained(pair: Pair, *args: object) -> object:
        held.extend(weakref.ref(model.model) for model in (pair.student, pair.teacher))
        return train(pair, *args)

    def judged(*args: object) -> None:
        alive[str(args[4])] = [model() is not None for model in held]
        judge(*args)

    monkeypatch.setattr(stage, "distil", trained)
    monkeypatch.setattr(stage, "evaluate_model", judged)
    gc.collect()
    gc.disable()
    try:
        stage.run_train(tmp_path / "run", replace(small, steps=1, selector="full"), quiet)
    finally:
        gc.enable()
    assert alive == {"base": [], "teacher": [], "full-100pct-seed0": [False, False]}


def test_one_process_that_sees_several_gpus_is_refused(small: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL refuses it too, in a traceback, when both models are loaded."""
    monkeypatch.setattr(DistillationConfig, "n_gpu", 2)
    with pytest.raises(SettingsError, match="one process sees 2 GPUs, and trains on one: set CUDA_VISIBLE_DEVICES"):
        check_arguments(small)
