"""What can be refused before models' libraries are imported, which takes seconds: runs, files and names that are not.

Nothing is decided here alone: a stage makes the same checks by the same functions, where its work needs them.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from teachdiag.adapters import local_adapter
from teachdiag.errors import InputError, ModelError, RolloutError, RunError, SettingsError, cause, using
from teachdiag.foreign import how_imported
from teachdiag.manifests import read_manifest
from teachdiag.prompts import local_file
from teachdiag.runs import Stage
from teachdiag.selectors import resolve_selector
from teachdiag.settings import (
    EMBEDDED,
    CalibrateSettings,
    CaptureSettings,
    EvaluateSettings,
    ImportSettings,
    PairSettings,
    ProbeSettings,
    TrainSettings,
)
from teachdiag.settings.base import shown
from teachdiag.sweeps import plan

_EXTRAS = ("trackio", "wandb")  # packages that an extra of their name installs
_PATH_LIKE = ("/", "./", "../", "~")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MODELS = (  # that are read
    "give the folder of a causal language model in transformers' format (config.json, tokenizer, safetensors), a GGUF "
    "file, its id on the Hub, or 'embedded'"
)


def need(extra: str, *packages: str) -> None:
    """Say what to install before a missing package can raise a traceback.

    Args:
        extra: of teachdiag, which installs them all.
        packages: by the names that are imported.

    Raises:
        InputError: one is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f"this command needs {package}: pip install 'teachdiag[{extra}]'")


def need_tracker(name: str) -> None:
    """Refuse a --report-to whose package is not installed.

    Raises:
        SettingsError: it is not.
    """
    if name != "none":
        _need_package(name, "--report-to")


def before_capture(run: Path, settings: CaptureSettings) -> None:
    """Refuse a run, a pair, contexts or prompts that are not there.

    Raises:
        InputError: one is not.
    """
    new = _begins(run, "capture")
    _pair(settings, new, served=bool(settings.teacher_url))
    if settings.contexts:
        how_imported(Path(settings.contexts))
        if new:
            idle = _OF_DRAWING if settings.grade else (*_OF_SOURCE, *_OF_DRAWING)
            settings.refuse_idle(dict.fromkeys(idle, "--prompts, in whose place --contexts is read"))
    if settings.grade or not settings.contexts:
        local_file(read_manifest(settings.prompts), settings.data_file)


def before_probe(run: Path, settings: ProbeSettings) -> None:
    """Refuse a run that was not captured, and selectors and students that are not there.

    Raises:
        InputError: one is not.
    """
    Stage(run, "capture").record()
    if settings.student_after:
        local_model(settings.student_after)
    if settings.selector != "all":
        for name in settings.selector.split(","):
            resolve_selector(name.strip())


def before_train(run: Path, settings: TrainSettings) -> None:
    """Refuse a run, a pair, prompts, selectors or loggers that are not there, and sweeps that are none.

    Raises:
        InputError: one is not.
    """
    new = _begins(run, "train")
    for cell in plan(settings):
        _loggers(cell.settings)
    _pair(settings, new)
    local_file(read_manifest(settings.prompts), settings.data_file)


def before_evaluate(run: Path, settings: EvaluateSettings) -> None:
    """Refuse a run, models or prompts that are not there.

    Raises:
        InputError: one is not.
    """
    new = _begins(run, "evaluate")
    on_hub = [_on_hub(name) for name in settings.models]
    if new and not any(on_hub):
        settings.refuse_idle(_UNREAD_REVISION)
    local_file(read_manifest(settings.prompts), settings.data_file)


def before_calibrate(settings: CalibrateSettings) -> None:
    """Refuse a pair or prompts that are not there, and a record that could not be written.

    Raises:
        InputError: one is not.
    """
    _pair(settings, True)
    local_file(read_manifest(settings.prompts), settings.data_file)
    if settings.to and not Path(settings.to).parent.is_dir():
        raise SettingsError(f"--to is {shown(settings.to)}: there is no folder {Path(settings.to).parent}")


def before_reading(run: Path) -> None:
    """Refuse to read a run that is not there.

    Raises:
        RunError: it is not.
    """
    if not run.is_dir():
        Stage(run, "capture").record()


def before_import(settings: ImportSettings) -> None:
    """Refuse dumps or a student that are not there.

    Raises:
        InputError: one is not.
    """
    for path in settings.files:
        existing(Path(path))
    if not _on_hub(settings.student):
        settings.refuse_idle(_UNREAD_REVISION)


def existing(path: Path) -> Path:
    """Return a file or folder of rollouts that is there.

    Raises:
        RolloutError: it is not, or cannot be.
    """
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise RolloutError(f"{shown(str(path))} cannot be read: {cause(error)}") from error
    if not exists:
        raise RolloutError(f"there is no file or folder {path}")
    return path


def local_model(name: str) -> Path | None:
    """Return the folder or GGUF file of a model on this machine; None for the embedded one, and what is on the Hub.

    Raises:
        ModelError: a path is meant, and neither is there.
    """
    path = Path(name)
    if name == EMBEDDED:
        return None
    if path.is_dir() or _is_gguf(path):
        return path
    if path.is_file() or path.suffix == ".gguf" or name.startswith(_PATH_LIKE):
        why = "is a file" if path.is_file() else "does not exist"
        raise ModelError(f"model {name!r} {why}: {MODELS}")
    if HUB_ID.fullmatch(name) is None or ".." in name:
        raise ModelError(f"model {shown(name)} is no folder here, and cannot be an id on the Hub: {MODELS}")
    return None


_OF_SOURCE = ("prompts", "data_file")
_OF_DRAWING = ("bank_prompts", "update_prompts", "max_prompt_tokens", "responses", "seed")


def _is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do, which is what they are known by, not their name."""
    if not path.is_file():
        return False
    with using(path), path.open("rb") as file:
        return file.read(4) == b"GGUF"


_UNREAD_REVISION = {"revision": "models on the Hub, and none is"}


def _begins(run: Path, stage: str) -> bool:
    """Say whether a stage has no note yet: what a later version refuses must not stop a run that an earlier one began.

    Raises:
        RunError: no run can be there, or the note is damaged.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file: choose another --run")
    return Stage(run, stage).read() is None


def _on_hub(name: str) -> bool:
    """Say whether a model's name can only be an id on the Hub.

    Raises:
        ModelError: it is no name of a model.
    """
    return local_model(name) is None and name != EMBEDDED


def _pair(settings: PairSettings, new: bool, served: bool = False) -> None:
    for adapter in filter(None, (settings.student_adapter, settings.teacher_adapter)):
        local_adapter(adapter)
    student, teacher = _on_hub(settings.student), not served and _on_hub(settings.teacher)
    if new and not teacher:
        settings.refuse_idle({"teacher_revision": "a teacher on the Hub"})
    if new and not (student or (teacher and not settings.teacher_revision)):
        settings.refuse_idle(_UNREAD_REVISION)


def _loggers(settings: TrainSettings) -> None:
    need_tracker(settings.report_to)
    if settings.trl_settings.get("use_vllm") is True:
        _need_package("vllm", "--trl use_vllm")


def _need_package(package: str, option: str) -> None:
    try:
        distribution(package)
    except PackageNotFoundError:
        wanted = f"'teachdiag[{package}]'" if package in _EXTRAS else package
        raise SettingsError(f"{option} needs {package}, which is not installed: pip install {wanted}") from None
