"""What can go wrong through no fault of the program: one sentence each, exit code 2, nothing lost."""


class InputError(Exception):
    """The user's input is wrong. The message says what is wrong, where, and what to do."""


class SettingsError(InputError):
    """An option or recipe entry has an impossible value."""


class ManifestError(InputError):
    """A prompt manifest, or the data it points at, is not what it says."""


class ModelError(InputError):
    """A model or tokenizer cannot be used, or a pair does not share its vocabulary."""


class ContextError(InputError):
    """A context cannot be scored: too long, empty, or with non-finite logits."""


class RolloutError(InputError):
    """Rollouts from elsewhere cannot be read, or their token ids cannot be recovered exactly."""


class ArtefactError(InputError):
    """A table of a run directory is missing, unfinished, or not of its schema."""


class RunError(InputError):
    """A run directory is in use, was made with another configuration, or lacks an earlier stage."""


class EstimationError(InputError):
    """The tables do not carry the estimate: a constant predictor, or too few prompts."""


def cause(error: BaseException) -> str:
    """Return the first line of what lies at the root of an exception, for the message of an `InputError`."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
