"""Where a model comes from, and what is known of it before its weights are loaded."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file, logging

from teachdiag.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config, local_adapter
from teachdiag.diagnostics.models.embedded import embedded_model
from teachdiag.diagnostics.models.gguf_files import dequantised
from teachdiag.errors import InputError, ModelError, cause
from teachdiag.preflight import HUB_ID, MODELS, local_model
from teachdiag.progress import Reporter
from teachdiag.settings import EMBEDDED, EndOfText
from teachdiag.settings.base import HUB_PATIENCE
from teachdiag.tables import file_digest


@dataclass(frozen=True)
class AdapterSource:
    """Where a LoRA adapter comes from, resolved.

    Attributes:
        name: what the user called it.
        folder: its local folder.
        digest: SHA-256 of its configuration and weights.
    """

    name: str
    folder: Path
    digest: str


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, resolved: enough to load the very same weights again.

    Attributes:
        name: what the user called it.
        path: Hub id or local folder.
        revision: Hub commit; '' for local folders.
        digest: SHA-256 of the local weights and tokenizer, or the Hub commit.
        dropped_layers: zero-based decoder layers to remove.
        trusted: whether code that comes with the model may run.
        end_of_text: of a student, what ends its responses (`vocabulary.ends_of`).
        adapter: the adapter that is on it, after layers were removed.
        options: JSON of further options with which transformers loads it; '' for none.
    """

    name: str
    path: str
    revision: str
    digest: str
    dropped_layers: tuple[int, ...] = ()
    trusted: bool = False
    end_of_text: EndOfText = "same"
    adapter: AdapterSource | None = None
    options: str = ""

    @property
    def at(self) -> str:
        """Revision, as transformers wants it."""
        return self.revision or "main"

    @property
    def whole_digest(self) -> str:
        """Digest of the weights, with the adapter's where there is one."""
        return f"{self.digest} with {self.adapter.digest}" if self.adapter else self.digest


Sources = tuple[ModelSource, ModelSource]  # of student and teacher


@dataclass(frozen=True)
class Outline:
    """A model without its weights: enough to lay out rollouts, and to refuse a pair.

    Attributes:
        name: what the user called it.
        tokenizer: its tokenizer.
        end_ids: token ids that end a text.
        rows: ids that its LM head has, padding included.
        limit: longest sequence that it was made for, in tokens.
        media_ids: token ids in whose places it reads pictures or sounds.
    """

    name: str
    tokenizer: Any
    end_ids: frozenset[int]
    rows: int
    limit: int
    media_ids: frozenset[int] = frozenset()


def resolve(
    name: str, revision: str, dropped_layers: tuple[int, ...], reporter: Reporter, trusted: bool = False
) -> ModelSource:
    """Find a model and pin its weights, without loading them.

    Args:
        name: Hub id, local folder, GGUF file, or 'embedded'.
        revision: of a Hub id.
        dropped_layers: zero-based decoder layers to remove.
        reporter: told where a GGUF file is dequantised.
        trusted: whether code that comes with the model may run.

    Raises:
        ModelError: it is neither embedded, nor a local folder with a configuration, nor on the Hub (or the Hub is out
            of reach and it is not in the local cache), or it is an adapter, or a file of a kind that is not read.
    """
    if name == EMBEDDED:
        folder, digest = embedded_model(reporter)
        return ModelSource(name, str(folder), "", digest, dropped_layers, trusted)
    if local := local_model(name):
        if local.is_file():
            folder, digest = dequantised(local, f"gguf-{file_digest(local)[:32]}", reporter)
            return ModelSource(name, str(folder), "", digest, dropped_layers, trusted)
        _refuse_other_kinds(name, [file.name for file in local.iterdir()])
        return ModelSource(name, name, "", _folder_digest(local), dropped_layers, trusted)
    path, commit = _on_hub(name, revision)
    return ModelSource(name, path, commit, commit, dropped_layers, trusted)


def resolve_adapter(name: str, model: ModelSource, reporter: Reporter) -> AdapterSource:
    """Find the adapter of a model and pin its weights.

    Args:
        name: its local folder.
        model: which it is put on.
        reporter: told where it names a model of which nobody here can tell whether it is this one.

    Raises:
        ModelError: there is none, it is no plain LoRA, or it names another model as its own.
    """
    folder = local_adapter(name)
    named = str(adapter_config(folder).get("base_model_name_or_path") or model.path)
    if named not in (model.name, model.path):
        here, hub = Path(named).is_dir(), model.revision and HUB_ID.fullmatch(named)
        if hub or (here and not model.revision and _folder_digest(Path(named)) != _folder_digest(Path(model.path))):
            raise ModelError(
                f"adapter {name!r} is one of model {named}, not of {model.name}: give that model, or mend "
                f"base_model_name_or_path in its {ADAPTER_CONFIG}"
            )
        if not here:
            reporter.say(f"Adapter {name} says that it is one of {named}, which is taken to be {model.name}")
    files = (folder / part for part in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    return AdapterSource(name, folder, hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest())


def _on_hub(name: str, revision: str) -> tuple[str, str]:
    """Where transformers finds a model of the Hub, and its commit: its id, or, out of reach, its folder in the cache.

    Raises:
        ModelError: there is none of that name and revision, or it is of a kind that is not read.
    """
    try:
        info = HfApi().model_info(name, revision=revision, timeout=HUB_PATIENCE)
    except (HFValidationError, HfHubHTTPError) as error:
        raise ModelError(
            f"model {name!r} (revision {revision}) is no local folder, and the Hub gives none such: {cause(error)}"
        ) from error
    except Exception as error:  # each way to the Hub has errors of its own
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            raise ModelError(
                f"model {name!r} (revision {revision}) is neither a local folder nor in the local cache, and the Hub "
                f"cannot be reached: {cause(error)}"
            ) from error
        folder = Path(cached).parent
        return str(folder), folder.name
    _refuse_other_kinds(name, [file.rfilename for file in info.siblings or ()])
    return name, str(info.sha)


def _refuse_other_kinds(name: str, files: Iterable[str]) -> None:
    """Refuse what holds an adapter, beside a model or instead of one, or no model that transformers reads."""
    held = set(files)
    if ADAPTER_CONFIG in held or any(file.startswith("adapter_model.") for file in held):
        raise ModelError(
            f"model {name!r} holds an adapter, which would be left out: give the model without it, and a folder with "
            "the adapter as --student-adapter or --teacher-adapter"
        )
    if "config.json" not in held:
        if any(file.endswith(".gguf") for file in held):
            raise ModelError(
                f"model {name!r} has GGUF files and no config.json: give the path of one of them, on this disk"
            )
        raise ModelError(f"model {name!r} has no config.json: {MODELS}")


@contextmanager
def reading(source: ModelSource) -> Iterator[None]:
    """Tell in one sentence of whatever a model's files make transformers raise.

    Raises:
        ModelError: they made it raise something.
    """
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is read from its report, and refused
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # every architecture and file format has errors of its own
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {source.name!r} brings code of its own, which runs only with --trust-remote-code: read it first"
            ) from error
        raise ModelError(f"model {source.name!r} cannot be loaded: {cause(error)}") from error
    finally:
        logging.set_verbosity(before)


def read_config(source: ModelSource) -> Any:  # noqa: ANN401
    """Read a model's configuration.

    Raises:
        ModelError: it cannot be read.
    """
    with reading(source):
        return AutoConfig.from_pretrained(source.path, revision=source.at, trust_remote_code=source.trusted)


def read_tokenizer(source: ModelSource) -> Any:  # noqa: ANN401
    """Read a model's tokenizer.

    Raises:
        ModelError: it cannot be read.
    """
    with reading(source):
        return AutoTokenizer.from_pretrained(source.path, revision=source.at, trust_remote_code=source.trusted)


def read_generation(source: ModelSource) -> GenerationConfig:
    """Read how a model is to be sampled: from a file of its own, or, where it has none, from its configuration.

    Raises:
        ModelError: it cannot be read.
    """
    with reading(source):
        if stored_file(source, "generation_config.json"):
            return GenerationConfig.from_pretrained(source.path, revision=source.at)
        return GenerationConfig.from_model_config(read_config(source))


def stored_file(source: ModelSource, name: str, download: bool = True) -> Path | None:
    """Where one of a model's files lies; None if it has none of that name, or may not fetch it from the Hub."""
    path = cached_file(
        source.path,
        name,
        revision=source.at,
        local_files_only=not download,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(path) if path else None


def outline(source: ModelSource) -> Outline:
    """Read a model's tokenizer and configuration.

    Raises:
        ModelError: they cannot be read.
    """
    config, tokenizer, generation = read_config(source), read_tokenizer(source), read_generation(source)
    with reading(source):
        text = config.get_text_config()
        ends, rows = end_ids(generation, tokenizer), int(text.vocab_size)
        return Outline(source.name, tokenizer, ends, rows, limit(text), _media_ids(config))


def end_ids(generation: Any, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401
    """Token ids that end a text, by a model's generation config and its tokenizer."""
    listed = generation.eos_token_id if generation else None
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _media_ids(config: Any) -> frozenset[int]:  # noqa: ANN401
    names = (f"{kind}_token_{word}" for kind in ("image", "video", "audio") for word in ("id", "index"))
    return frozenset(value for name in names if isinstance(value := getattr(config, name, None), int))


def limit(config: Any) -> int:  # noqa: ANN401
    """Longest sequence that a model was made for, in tokens, by its text config."""
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _folder_digest(folder: Path) -> str:
    """SHA-256 over every file that can change what the model computes: weights, configuration, tokenizer, template."""
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix != ".md" and not f.name.startswith(".")]
    return hashlib.sha256("".join(f"{f.name} {file_digest(f)}\n" for f in files).encode()).hexdigest()
