"""A generator of bad inputs: each gets one sentence and exit code 2, and leaves nothing half-written behind.

Every kind of input that users bring (options, recipes, prompts, manifests, models, contexts, dumps, notes, tables,
code) is spoilt in ways drawn from numbered random streams, for each family of commands. Commands run in this process.
"""

import hashlib
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stages import STAGES, options
from typer.main import get_command

from teachdiag import cli
from teachdiag.calibration import Calibration, Measured, write_calibration
from teachdiag.progress import Reporter
from teachdiag.settings import (
    CaptureSettings,
)
from teachdiag.settings.base import fits, flag

pytestmark = pytest.mark.slow

QUIET = Reporter(quiet=True)
VOLATILE = {".lock", "events.jsonl"}
Words = list[str]


@dataclass(frozen=True)
class World:
    """A finished run, and whole inputs of every kind, to be copied and spoilt."""

    folder: Path
    settings: CaptureSettings
    run: Path
    manifest: str

    def place(self, case: "Case") -> Path:
        return self.folder / "cases" / hashlib.sha256(case.label.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Case:
    """One bad input: what it is called, and what makes it in a folder of its own and returns the command's words."""

    label: str
    make: Callable[[Path], Words]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tiny_settings: CaptureSettings, analysed_once: Path, manifest_path: str
) -> World:
    folder = tmp_path_factory.mktemp("bad")
    run = Path(shutil.copytree(analysed_once, folder / "run"))
    return World(folder, tiny_settings, run, manifest_path)


# How values and files are spoilt.


def spoilt_value(hint: Any, rng: random.Random) -> str:
    """What the command line gives that no option of this type takes."""
    if get_origin(hint) is Literal:
        return rng.choice(["nonsense", "", get_args(hint)[0].upper(), f"{get_args(hint)[0]} ", "0"])
    numbers = ["", "x", "nan", "1e400", "-1", "-inf", "1" + "0" * 30, "0x10", "true", "1,5", "None", "９９ 9"]
    if fits(0.5, hint):
        return rng.choice([*numbers, "inf", "1e308x"])
    if fits(3, hint):
        return rng.choice([*numbers, "1.5", "1e3", "inf"])
    return rng.choice(["a\0b", "\udcff"])


def spoilt_toml(hint: Any, rng: random.Random) -> str:
    """A TOML value of another type."""
    values = {
        "true": True, "7": 7, "2.5": 2.5, '"7"': "7", '"x"': "x", "[]": [], "[1]": [1], '["x"]': ["x"], "{}": {},
        "{a = 1}": {"a": 1}, "1979-05-27": None, "[[]]": [[]], "nan": float("nan"), "-inf": float("-inf"),
    }  # fmt: skip
    text = rng.choice([text for text, value in values.items() if not fits(value, hint) or text in ("nan", "-inf")])
    return text


def spoilt_text(raw: bytes, rng: random.Random) -> bytes:
    """Bytes that are no text of the same kind: not UTF-8, cut, of another kind, or nothing."""
    place = rng.randrange(len(raw))
    return rng.choice(
        [
            b"",
            b"\0" * len(raw),
            raw[:place] + b"\xff" + raw[place:],
            raw[:place] + bytes([raw[place] | 0x80]) + raw[place + 1 :] if raw[place] < 0x80 else b"\xfe",
            b"PAR1" + raw,
            b"\x89PNG\r\n\x1a\n",
            bytes(rng.randrange(256) for _ in range(64)) + b"\xff",
            b"[" * 5000,
            b"{",
        ]
    )


def spoilt_binary(raw: bytes, rng: random.Random) -> bytes:
    """Bytes of a file that is cut, overwritten with zeros, or of another kind."""
    place = rng.randrange(1, len(raw))
    return rng.choice(
        [
            b"",
            raw[:place],
            b"\0" * len(raw),
            b"\0" * 16 + raw[16:],
            raw[: -(len(raw) - place)] + b"\0" * (len(raw) - place),
            b"[]",
            b'{"a": 1}',
            b"\x89PNG\r\n\x1a\n" + raw,
            bytes(rng.randrange(256) for _ in range(200)),
        ]
    )


def spoilt_json(content: Any, rng: random.Random, keys: tuple[str, ...] = ()) -> str:
    """JSON that is cut or of another type, or lacks one of the keys or has it of another type."""
    text = json.dumps(content)
    if not keys or rng.random() < 0.4:
        return rng.choice(["", "{", "[]", "null", "3", '"x"', "{}", text[: rng.randrange(1, len(text))], text + "x"])
    key, changed = rng.choice(keys), dict(content)
    if rng.random() < 0.4:
        del changed[key]
    else:
        others: list[Any] = [None, 3, "x", [], [1], True]
        changed[key] = rng.choice([other for other in others if type(other) is not type(content[key])])
    return json.dumps(changed)


# How a case is judged.


def state(run: Path) -> dict[str, str]:
    files = [f for f in sorted(run.rglob("*")) if f.is_file() and f.name not in VOLATILE]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def faults(case: Case, world: World, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a case; return what is wrong with how it was refused, '' for nothing."""
    folder = world.place(case)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = case.make(folder)
    run = folder / "run"
    before = state(run)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "app", _command())
        patch.setattr(sys, "argv", ["teachdiag", *words])
        patch.syspath_prepend(folder)
        for name in ("bad_selector",):
            patch.delitem(sys.modules, name, raising=False)
        try:
            cli.main()
            code: Any = "no exit"
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            lines = [line.strip() for line in traceback.format_exc().splitlines()]
            places = [line for line in lines if line.startswith("File ") and "/teachdiag/" in line]
            return f"traceback: {lines[-1][:150]} {places[-1][-80:] if places else ''}"
    said = capsys.readouterr().err
    sentences = [line for line in said.splitlines() if line.startswith("teachdiag: ")]
    after = state(run)
    wrong = {
        f"exit code {code}": code != 2,
        f"{len(sentences)} sentences: {said[-300:]!r}": len(sentences) != 1 or not said.endswith(f"{sentences[0]}\n"),
        "traceback in stderr": "Traceback" in said,
        f"sentence of {len(said)} characters": len(said) > 2500,
        f"results changed: {[n for n in before if before[n] != after.get(n)]}": any(
            before[name] != after.get(name) for name in before
        ),
        "half-written": any(name.endswith(".part") for name in after.keys() - before.keys()),
        "marked as complete": any(
            '"status": "complete"' in (run / name).read_text(errors="replace")
            for name in after.keys() - before.keys()
            if name.endswith(".json")
        ),
    }
    shutil.rmtree(folder, ignore_errors=True)
    return "; ".join(fault for fault, is_so in wrong.items() if is_so)


_COMMAND: list[Any] = []


def _command() -> Any:
    """The command line, built once."""
    if not _COMMAND:
        _COMMAND.append(get_command(cli.app))
    return _COMMAND[0]


def judged(cases: Iterator[Case], world: World, capsys: pytest.CaptureFixture[str]) -> int:
    """Run every case; fail with the list of those that were not refused as they should be; return their number."""
    known = list(cases)
    found = {case.label: wrong for case in known if (wrong := faults(case, world, capsys))}
    assert not found, f"{len(found)} of {len(known)}:\n" + "\n".join(
        f"{why} <- {label}" for label, why in found.items()
    )
    return len(known)


def put(path: Path, content: bytes | str) -> Path:
    """Write a file anew, whatever else its bytes are linked to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    return path


# Options and recipes, for every command.

FAMILIES = {
    "capture": ("capture",),
    "probe": ("probe",),
    "analyze": ("analyze", "figures", "report"),
    "train": ("train", "evaluate"),
    "plan": ("plan",),
}


def usual(stage: str, world: World, folder: Path) -> Words:
    """The words of a command that would do its work."""
    if stage in ("analyze", "figures", "report", "probe"):
        shutil.copytree(world.run, folder / "run", copy_function=os.link)
    pair = ["--student", world.settings.student, "--teacher", world.settings.teacher]
    run, prompts = ["--run", str(folder / "run")], ["--prompts", world.manifest]
    few = ["--eval-prompts", "2", "--eval-samples", "1", "--eval-max-new-tokens", "4"]
    return {
        "capture": ["capture", *options(replace(world.settings, bank_prompts=3, update_prompts=2)), *run],
        "probe": ["probe", *run, "--kind", "one_step", "--batch-tokens", "100"],
        "analyze": ["analyze", str(folder / "run"), "--draws", "100"],
        "figures": ["figures", str(folder / "run"), "--only", "coefficients"],
        "report": ["report", str(folder / "run")],
        "train": ["train", *run, *pair, *prompts, *few, "--steps", "1", "--batch", "2", "--micro-batch", "2",
                  "--train-prompts", "4", "--max-new-tokens", "4"],
        "evaluate": ["evaluate", world.settings.student, *run, *prompts, *few],
        "plan": ["plan", "--calibration", str(world.folder / "calibration.json")],
    }[stage]  # fmt: skip


def option_cases(family: str, world: World, count: int) -> Iterator[Case]:
    rng = random.Random(f"{family} options")
    stages = FAMILIES[family]
    for number in range(count):
        stage = rng.choice(stages)
        entry = rng.choice([e for e in fields(STAGES[stage]) if e.name not in ("models",)])  # type: ignore[arg-type]
        hint = get_type_hints(STAGES[stage])[entry.name]
        value = "3" if hint is bool else spoilt_value(hint, rng)
        word = f"{flag(entry.name)}={value}"
        yield Case(f"{number} {stage} {word!r}", lambda folder, s=stage, w=word: [*usual(s, world, folder), w])


def recipe_cases(family: str, world: World, count: int) -> Iterator[Case]:
    rng, given = random.Random(f"{family} recipes"), options(world.settings)  # the command line's win over a recipe's
    for number in range(count):
        stage = rng.choice(FAMILIES[family])
        entry = rng.choice([e for e in fields(STAGES[stage]) if e.name != "models" and flag(e.name) not in given])  # type: ignore[arg-type]
        good = f"[{stage}]\nquiet = true\n" if stage != "plan" else "[plan]\njson = true\n"
        if rng.random() < 0.7:
            value = spoilt_toml(get_type_hints(STAGES[stage])[entry.name], rng)
            text = f"[{stage}]\n{entry.name} = {value}\n".encode()
        else:
            text = rng.choice([spoilt_text(good.encode(), rng) or b"[", good.encode() + b"\nno_such = 1", b"top = 1"])

        def make(folder: Path, stage: str = stage, text: bytes = text) -> Words:
            (folder / "recipe.toml").write_bytes(text)
            return [stage, *usual(stage, world, folder)[1:], "--recipe", str(folder / "recipe.toml")]

        yield Case(f"{number} {stage} recipe {text[:60]!r}", make)


@pytest.mark.parametrize("family", FAMILIES)
def test_options(family: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    judged(option_cases(family, world, 60), world, capsys)


_MEANINGLESS = {  # of the right type, and yet impossible here
    "capture": ["--max-new-tokens=9000000000000000000", "--bank-prompts=9000000000000000000", "--top-k=265",
                "--student-drop-layers=-1", "--student-drop-layers=", "--device=meta", "--device=cuda:99", "--device=",
                "--data-file=unknown://x.jsonl", "--contexts=/dev/null", "--contexts=.", "--prompts=/", "--student=",
                f"--prompts={'a' * 300}", f"--student={'a' * 300}", f"--contexts={'a' * 300}", "--student=/dev/null",
                f"--data-file={'a' * 300}.jsonl", "--template-options=[1]", "--student=a/b/c/d", "--student=x y"],
    "probe": ["--update-contexts=9000000000000000000", "--name=..", f"--name={'a' * 300}", "--device=meta",
              "--kind=isolated --sample=9000000000000000000", "--kind=isolated --fix-contexts=9000000000000000000",
              "--kind=selectors --selector=", "--kind=selectors --selector=random,", "--kind=selectors --selector=:x",
              "--kind=selectors --selector=released:no", "--kind=selectors --budgets=,", "--kind=checkpoint",
              "--kind=checkpoint --student-after=./no", "--kind=selectors --selector=oracle"],
    "analyze": ["--folds=100000", "--compat=released"],
    "figures": ["--only=../x", f"--only={'a' * 300}"],
    "train": ["--train-prompts=9000000000000000000", "--max-new-tokens=9000000000000000000", "--micro-batch=3",
              "--eval-max-new-tokens=9000000000000000000", "--top-k=265", "--device=meta", "--report-to=tensorboard",
              '--trl={"adam_beta1": 5}', '--trl={"log_level": "x"}', '--trl={"fsdp": "nonsense"}'],
    "evaluate": ["./no", "--device=meta", "--eval-prompts=9000000000000000000"],
    "plan": ["--device-memory=1e-300", "--student-parameters=1e15"],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_values_of_the_right_type_that_cannot_be(family: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    measured = {entry.name: 1e6 for entry in fields(Measured)}
    write_calibration(Calibration(Measured(**measured), "float32", {"device_name": "cpu", "threads": 1}),
                      world.folder / "calibration.json")  # fmt: skip
    cases = (
        Case(f"{stage} {own}", lambda folder, s=stage, w=own: [*usual(s, world, folder), *_words(w)])
        for stage in FAMILIES[family]
        for own in _MEANINGLESS.get(stage, ())
    )
    judged(cases, world, capsys)


def _words(text: str) -> Words:
    return [text] if "{" in text or text.endswith("x y") else text.split(" ")


@pytest.mark.parametrize("family", FAMILIES)
def test_recipes(family: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    judged(recipe_cases(family, world, 40), world, capsys)


# Prompts, manifests, contexts and models, for the commands that read them.


def prompt_cases(stages: tuple[str, ...], world: World, count: int) -> Iterator[Case]:
    rng = random.Random(f"{stages} prompts")
    manifest, rows = Path(world.manifest).read_text(), Path(world.manifest).with_suffix(".jsonl")
    for number in range(count):
        stage, what = rng.choice(stages), rng.choice(["manifest", "entry", "rows", "row"])
        text, data = manifest, rows.read_bytes()
        if what == "manifest":
            spoilt = spoilt_text(text.encode(), rng)
        elif what == "entry":
            old, new = rng.choice(_ENTRIES)
            spoilt, what = text.replace(old, new).encode(), new
        else:
            spoilt = text.encode()
            lines = data.splitlines(keepends=True)
            if what == "rows":
                data = spoilt_text(data, rng)
            else:
                place, row = rng.randrange(len(lines)), json.loads(lines[0])
                row[rng.choice(["q", "s", "a"])] = rng.choice([None, {"a": 1}, [1], "\ud800"])
                lines[place] = rng.choice([json.dumps(row).encode(), b"3", b"[1]", b'"x"', b"{}", b"nope"]) + b"\n"
                data = b"".join(lines)

        def make(folder: Path, stage: str = stage, spoilt: bytes = spoilt, data: bytes = data) -> Words:
            path, file = put(folder / "own.toml", spoilt), put(folder / "rows.jsonl", data)
            return [*usual(stage, world, folder), "--prompts", str(path), "--data-file", str(file)]

        yield Case(f"{number} {stage} {what} {spoilt[:40] if what == 'manifest' else data[-60:]!r}", make)


_ENTRIES = [  # what a manifest says -> what makes it none
    ('id = "sums"', 'id = "a b"'),
    ('id = "sums"', "id = 3"),
    ('id = "sums"', ""),
    ('licence = "none needed"', "licence = []"),
    ('licence = "none needed"', "rows = -1"),
    ('licence = "none needed"', 'licence = "x"\nrows = 7'),
    ('licence = "none needed"', 'licence = "x"\nsha256 = ["file:0"]'),
    ('licence = "none needed"', 'licence = "x"\nsha256 = [3]'),
    ('licence = "none needed"', 'licence = "x"\nnew = 1'),
    ('kind = "file"', 'kind = "files"'),
    ('kind = "file"', "kind = true"),
    ('question = "q"', 'question = "no_such"'),
    ('question = "q"', 'question = ""'),
    ('question = "q"', "question = 1"),
    ('question = "q"', 'question = "q.x.0"'),
    ('prompt = "{question}"', 'prompt = "{question"'),
    ('prompt = "{question}"', 'prompt = "{nothing}"'),
    ('prompt = "{question}"', 'prompt = "{question.__class__}"'),
    ('prompt = "{question}"', 'prompt = "{question:>999999999}"'),
    ('prompt = "{question}"', 'prompt = "{0}"'),
    ('prompt = "{question}"', 'prompt = "constant"'),
    ('prompt = "{question}"', "prompt = []"),
    ("[template]", '[template]\n[grading]\ngrader = "none"\n[template2]'),
    ("[columns]", "[colums]"),
]


def model_cases(stages: tuple[str, ...], world: World, count: int) -> Iterator[Case]:
    rng = random.Random(f"{stages} models")
    whole = Path(world.settings.student)
    config = json.loads((whole / "config.json").read_text())
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "model_type", "num_attention_heads", "intermediate_size")
    for number in range(count):
        stage, side = rng.choice(stages), rng.choice(["--student", "--teacher"])
        what = rng.choice(["config.json", "config key", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
        name = what.replace("config key", "config.json")
        raw = (whole / name).read_bytes()
        if what == "config key":
            spoilt = json.dumps(config | {rng.choice(keys): rng.choice([None, "x", -1, 0, [], 10**12, 2.5])}).encode()
        elif what == "model.safetensors":
            spoilt = spoilt_binary(raw, rng)
        else:
            spoilt = rng.choice([spoilt_text(raw, rng), raw[: rng.randrange(1, len(raw) - 1)]])
        gone = rng.random() < 0.05

        def make(
            folder: Path, stage: str = stage, side: str = side, name: str = name, spoilt: bytes = spoilt,
            gone: bool = gone,
        ) -> Words:  # fmt: skip
            model = folder / "model"
            shutil.copytree(whole, model, copy_function=os.link)
            put(model / name, spoilt)
            if gone:
                (model / name).unlink()
            words = usual(stage, world, folder)
            return [stage, str(model), *words[2:]] if stage == "evaluate" else [*words, side, str(model)]

        yield Case(f"{number} {stage} {side} {what} {'gone' if gone else spoilt[:60]!r}", make)


def contexts_cases(world: World, count: int) -> Iterator[Case]:
    rng = random.Random("contexts")
    table = pa.concat_tables([pq.read_table(file) for file in sorted((world.run / "contexts").glob("*.parquet"))])
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    raw = buffer.getvalue().to_pybytes()
    for number in range(count):
        if rng.random() < 0.5:
            spoilt, told = spoilt_binary(raw, rng), "bytes"
        else:
            name = rng.choice(["context_id", "prompt_id", "split", "prompt_token_ids", "response_token_ids"])
            place, told = table.column_names.index(name), rng.choice(["gone", "null", "text", "number"])
            other = {"null": pa.nulls(len(table)), "text": ["\ud7ff"] * len(table), "number": [10**15] * len(table)}
            if told == "text" and name in ("prompt_id", "split"):
                told = "null"
            changed = table.remove_column(place)
            if told != "gone":
                changed = changed.append_column(name, pa.array(other[told]))
            buffer = pa.BufferOutputStream()
            pq.write_table(changed, buffer)
            spoilt, told = buffer.getvalue().to_pybytes(), f"{name} {told}"

        def make(folder: Path, spoilt: bytes = spoilt) -> Words:
            return [*usual("capture", world, folder), "--contexts", str(put(folder / "contexts.parquet", spoilt))]

        yield Case(f"{number} capture contexts {told} {spoilt[:20]!r}", make)


# The run itself: its notes and its tables.


def note_cases(stages: tuple[str, ...], world: World, count: int) -> Iterator[Case]:
    rng = random.Random(f"{stages} notes")
    for number in range(count):
        stage = rng.choice(stages)
        name = rng.choice(NOTES[stage][0])
        content = json.loads((world.run / name).read_text())
        text = spoilt_json(content, rng, tuple(sorted(content.keys() - {"sha256"})))

        def make(folder: Path, stage: str = stage, name: str = name, text: str = text) -> Words:
            words = usual(stage, world, folder)
            put(folder / "run" / name, text)
            return words

        yield Case(f"{number} {stage} {name} {text[:50]!r}", make)


def table_cases(stages: tuple[str, ...], world: World, count: int) -> Iterator[Case]:
    rng = random.Random(f"{stages} tables")
    for number in range(count):
        stage = rng.choice(stages)
        table = rng.choice(NOTES[stage][1])
        file = rng.choice(sorted((world.run / table).rglob("*.parquet")))
        raw, inside = file.read_bytes(), file.relative_to(world.run)
        place = rng.randrange(len(raw))
        flipped = raw[:place] + bytes([raw[place] ^ 1 << rng.randrange(8)]) + raw[place + 1 :]
        spoilt = rng.choice([flipped, flipped, spoilt_binary(raw, rng)])

        def make(folder: Path, stage: str = stage, name: Path = inside, spoilt: bytes = spoilt) -> Words:
            words = usual(stage, world, folder)
            put(folder / "run" / name, spoilt)
            return words

        yield Case(f"{number} {stage} {inside} at {place} {len(spoilt)} bytes", make)


# Users' code.

_CODE = [
    "import sys\nsys.exit()",
    "raise SystemExit(0)",
    "def score(tokens)\n    return 1",
    "1 / 0",
    "import no_such_module",
    "score = 3",
    "class score:\n    pass",
    "other = 1",
    "def score(tokens):\n    return 1\nscore.columns = ('no_such',)",
    "def score(tokens):\n    return 1\nscore.columns = 'forward_kl'",
    "def score(tokens):\n    return 1\nscore.columns = ('split',)",
]
_CALLED = [
    "import sys\n    sys.exit()",
    "raise SystemExit(0)",
    "return None",
    "return float('nan')",
    "return [float('nan')] * len(tokens)",
    "return [float('inf')] * len(tokens)",
    "return [1.0] * (len(tokens) + 1)",
    "return ['x'] * len(tokens)",
    "return {1: 2}",
    "return tokens.column('no_such')",
    "tokens.stored('position')[:] = 0",
    "raise KeyError('x')",
]


def selector_cases(stage: str, world: World, codes: list[str]) -> Iterator[Case]:
    for number, code in enumerate(codes):

        def make(folder: Path, code: str = code) -> Words:
            put(folder / "bad_selector.py", code)
            words = [*usual(stage, world, folder), "--selector", "bad_selector:score"]
            few = ["--kind", "selectors", "--budgets", "0.2", "--seeds", "1", "--fix-contexts", "1"]
            return [*words, *few] if stage == "probe" else words

        yield Case(f"{number} {stage} selector {code!r}", make)


# What training is given beside.


_TRL: dict[str, tuple[type, ...]] = {  # settings of TRL -> types of JSON that would be fine
    **dict.fromkeys(("learning_rate", "max_steps", "output_dir", "report_to", "eval_steps", "no_such"), ()),
    **dict.fromkeys(("use_vllm", "gradient_checkpointing"), (bool,)),
    **{"adam_beta1": (float, int), "optim": (str,), "fsdp_config": (dict, str), "dataloader_num_workers": (int,)},
}


def trl_cases(world: World, count: int) -> Iterator[Case]:
    rng = random.Random("trl")
    values: list[Any] = [None, True, 3, "x", [], [1], {}, {"a": 1}, -1, 1e300]
    for number in range(count):
        key = rng.choice(sorted(_TRL))
        fine = [v for v in values if isinstance(v, _TRL[key]) and (bool in _TRL[key] or not isinstance(v, bool))]
        value = rng.choice([v for v in values if not any(v is own for own in fine)])
        whole = json.dumps({key: value})
        text = rng.choice([whole, whole, whole[:-1], json.dumps([key]), f'{{"{key}": NaN}}'])
        yield Case(f"{number} train --trl {text}", lambda folder, t=text: [*usual("train", world, folder), "--trl", t])


def sweep_cases(world: World, count: int) -> Iterator[Case]:
    rng = random.Random("sweeps")
    entries = {"arms": ['["full"]', '[["full"]]', "[]", "3", '["nope"]', "[true]"],
               "budgets": ["[0.1]", "[0]", "[nan]", '["x"]', "[true]", "[]", "0.1", "[1e300]"],
               "seeds": ["1", "0", "-1", "true", "1.5", "1000000000000", '"1"', "[1]"]}  # fmt: skip
    for number in range(count):
        chosen = {name: values[0] for name, values in entries.items()}
        name = rng.choice(sorted(entries))
        chosen[name] = rng.choice(entries[name][1:])
        text = "[sweep]\n" + "".join(f"{own} = {value}\n" for own, value in chosen.items())
        text = rng.choice([text, text, text[: len(text) // 2], text + "[arms]\nfull = 3\n", text + "[arms.x]\n"])

        def make(folder: Path, text: str = text) -> Words:
            return [*usual("train", world, folder), "--sweep", str(put(folder / "sweep.toml", text))]

        yield Case(f"{number} train sweep {text!r}", make)


# Rollouts from elsewhere.


def dumps(folder: Path) -> dict[str, tuple[str, bytes]]:
    """A file of each format that is read, by its import's name, with its ending."""
    import torch

    texts = [(f"What is {n}?", f"It is {n}.") for n in range(6)]
    lines = {
        "jsonl": [{"prompt": p, "response": r} for p, r in texts],
        "verl": [{"input": p, "output": r, "gts": None, "score": 0.5, "step": 1} for p, r in texts],
    }
    found = {name: (".jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()) for name, rows in lines.items()}
    table = pa.table({"step": [1] * 6, "prompt": [p for p, _ in texts], "completion": [r for _, r in texts]})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    found["trl"] = (".parquet", buffer.getvalue().to_pybytes())
    samples = [
        {"group_index": n, "index": n, "prompt": p, "tokens": [72, 105, 33], "response": r, "response_length": 1,
         "status": "completed"}
        for n, (p, r) in enumerate(texts)
    ]  # fmt: skip
    torch.save({"rollout_id": 0, "samples": samples}, folder / "s.pt")
    found["slime"] = (".pt", (folder / "s.pt").read_bytes())
    return found


def import_cases(world: World, count: int) -> Iterator[Case]:
    rng = random.Random("imports")
    known = dumps(world.folder)
    for number in range(count):
        name = rng.choice(sorted(known))
        ending, raw = known[name]
        told = "bytes"
        if ending == ".jsonl" and rng.random() < 0.6:
            rows = [json.loads(line) for line in raw.splitlines()]
            place, key = (
                rng.randrange(len(rows)),
                rng.choice(sorted(rows[0].keys() & {"prompt", "response", "input", "output"})),
            )
            if rng.random() < 0.2:
                del rows[place][key]
            else:
                rows[place][key] = rng.choice(
                    [None, 3, True, {"a": 1}, [], [[]], [1.5], [10**30], "", "\ud800", [None]]
                )
            told = f"row {place} {rows[place]}"
            raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
        elif ending == ".jsonl":
            raw = spoilt_text(raw, rng)
        else:
            raw = spoilt_binary(raw, rng)

        def make(folder: Path, name: str = name, ending: str = ending, raw: bytes = raw) -> Words:
            file, out = put(folder / f"dump{ending}", raw), folder / "run" / "contexts.parquet"
            return ["import", name, str(file), "--student", world.settings.student, "--contexts", str(out)]

        yield Case(f"{number} import {name} {told} {raw[:30]!r}", make)


def import_option_cases(world: World, count: int) -> Iterator[Case]:
    rng = random.Random("import options")
    raw = dumps(world.folder)["jsonl"][1]
    wrong = ["--student=", "--student=./none", "--contexts=", "--contexts=x.csv", "--update-prompts=-1", "--seed=x",
             "--update-prompts=6", "--update-prompts=1000000000000000000000000000000", "--skip-at-most=nan",
             "--skip-at-most=2", "--template-options={", "--template-options=[]", "--skip-bad-rows=3", "--nope",
             "--template-options={\"tokenize\": true}", "--seed=1e3", "none.jsonl"]  # fmt: skip
    for number in range(count):
        word, name = rng.choice(wrong), rng.choice(["jsonl", "verl", "trl", "slime"])

        def make(folder: Path, word: str = word, name: str = name) -> Words:
            file, out = put(folder / "dump.jsonl", raw), folder / "run/contexts.parquet"
            return ["import", name, str(file), "--student", world.settings.student, "--contexts", str(out), word]

        yield Case(f"{number} import {name} {word!r}", make)


# The calibration of a plan.


def calibration_cases(world: World, count: int) -> Iterator[Case]:
    rng = random.Random("calibrations")
    measured = {entry.name: 1e6 for entry in fields(Measured)}
    content = {"kind": "teachdiag calibration", "measured": measured, "dtype": "float32",
               "made_with": {"device_name": "cpu", "threads": 1}}  # fmt: skip
    for number in range(count):
        if rng.random() < 0.5:
            text = spoilt_json(content, rng, tuple(content))
        else:
            values: list[Any] = [None, "x", 0, -1, True, float("inf"), float("nan"), 1e-320, 1e308, [], 10**40]
            text = json.dumps(content | {"measured": measured | {rng.choice(list(measured)): rng.choice(values)}})

        def make(folder: Path, text: str = text) -> Words:
            return ["plan", "--calibration", str(put(folder / "calibration.json", text))]

        yield Case(f"{number} plan calibration {text!r}", make)


NOTES = {  # by command: the notes that it reads, and the tables
    "probe": (("capture.json",), ("contexts", "positions")),
    "analyze": (("capture.json", "probes/p.json"), ("positions", "gains/p", "gains/p.theta0")),
    "report": (
        ("capture.json", "probes/p.json", "analysis/summary.json"),
        ("contexts", "positions", "gains/p", "vocabulary", "analysis"),
    ),
    "figures": (("analysis/summary.json",), ("analysis",)),
}


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("capture prompts", lambda w: prompt_cases(("capture",), w, 40)),
        ("capture models", lambda w: model_cases(("capture",), w, 30)),
        ("capture contexts", lambda w: contexts_cases(w, 30)),
        ("probe notes", lambda w: note_cases(("probe",), w, 40)),
        ("probe tables", lambda w: table_cases(("probe",), w, 40)),
        (
            "probe selectors",
            lambda w: selector_cases("probe", w, _CODE + [f"def score(tokens):\n    {c}" for c in _CALLED]),
        ),
        ("analyze notes", lambda w: note_cases(("analyze", "report", "figures"), w, 60)),
        ("analyze tables", lambda w: table_cases(("analyze", "report", "figures"), w, 60)),
        ("train prompts", lambda w: prompt_cases(("train", "evaluate"), w, 30)),
        ("train models", lambda w: model_cases(("train", "evaluate"), w, 20)),
        ("train trl", lambda w: trl_cases(w, 30)),
        ("train sweeps", lambda w: sweep_cases(w, 30)),
        ("train selectors", lambda w: selector_cases("train", w, _CODE)),
        ("import files", lambda w: import_cases(w, 150)),
        ("import options", lambda w: import_option_cases(w, 50)),
        ("plan calibrations", lambda w: calibration_cases(w, 100)),
    ],
    ids=lambda own: own.replace(" ", "-") if isinstance(own, str) else "",
)
def test_files_and_code(
    kind: str, cases: Callable[[World], Iterator[Case]], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(cases(world), world, capsys)
