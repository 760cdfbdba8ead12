"""Where a model comes from, and what is known of it before its weights are loaded."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from teachdiag.diagnostics.embedded import embedded_model
from teachdiag.errors import ModelError, cause
from teachdiag.progress import Reporter
from teachdiag.settings import EMBEDDED
from teachdiag.tables import file_digest


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, resolved: enough to load the very same weights again.

    Attributes:
        name: what the user called it.
        path: Hub id or local folder.
        revision: Hub commit; '' for local folders.
        digest: SHA-256 of the local weights and tokenizer, or the Hub commit.
        dropped_layers: zero-based decoder layers to remove.
    """

    name: str
    path: str
    revision: str
    digest: str
    dropped_layers: tuple[int, ...] = ()

    @property
    def at(self) -> str:
        """Revision, as transformers wants it."""
        return self.revision or "main"


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
    """

    name: str
    tokenizer: Any
    end_ids: frozenset[int]
    rows: int
    limit: int


def resolve(name: str, revision: str, dropped_layers: tuple[int, ...], reporter: Reporter) -> ModelSource:
    """Find a model and pin its weights, without loading them.

    Raises:
        ModelError: it is neither embedded, nor a local folder with weights, nor on the Hub (or the Hub is out of
            reach and it is not in the local cache).
    """
    if name == EMBEDDED:
        folder = embedded_model(reporter)
        return ModelSource(name, str(folder), "", folder.name, dropped_layers)
    if Path(name).is_dir():
        return ModelSource(name, name, "", _folder_digest(Path(name)), dropped_layers)
    try:
        commit = AutoConfig.from_pretrained(name, revision=revision)._commit_hash
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r} (revision {revision}) cannot be found, neither as a local folder nor on the Hub: "
            f"{cause(error)}"
        ) from error
    return ModelSource(name, name, commit or revision, commit or revision, dropped_layers)


def outline(source: ModelSource) -> Outline:
    """Read a model's tokenizer and configuration.

    Raises:
        ModelError: they cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(source.path, revision=source.at)
        tokenizer = AutoTokenizer.from_pretrained(source.path, revision=source.at)
        try:
            generation = GenerationConfig.from_pretrained(source.path, revision=source.at)
        except OSError:  # a model may come without one
            generation = GenerationConfig.from_model_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {source.name!r} cannot be loaded: {cause(error)}") from error
    text = config.get_text_config()
    return Outline(source.name, tokenizer, end_ids(generation, tokenizer), int(text.vocab_size), limit(text))


def end_ids(generation: Any, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401
    """Token ids that end a text, by a model's generation config and its tokenizer."""
    listed = generation.eos_token_id if generation else None
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def limit(config: Any) -> int:  # noqa: ANN401
    """Longest sequence that a model was made for, in tokens, by its text config."""
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _folder_digest(folder: Path) -> str:
    """SHA-256 over every file that can change what the model computes: weights, configuration, tokenizer, template."""
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix != ".md" and not f.name.startswith(".")]
    if not any(f.name == "config.json" for f in files):
        raise ModelError(f"{folder} holds no model: there is no config.json")
    return hashlib.sha256("".join(f"{f.name} {file_digest(f)}\n" for f in files).encode()).hexdigest()
