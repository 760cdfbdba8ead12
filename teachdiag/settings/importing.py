"""Settings of `import`, which brings rollouts from elsewhere."""

from dataclasses import dataclass

from teachdiag.settings.base import (
    MODELS,
    TEMPLATE_OPTIONS,
    TRUST_HELP,
    Checked,
    arguments,
    option,
)


@dataclass(frozen=True, kw_only=True)
class ImportSettings(Checked):
    """Which files, whose rollouts they are, and what may be mended or left out."""

    files: list[str] = arguments("What to import: files, and folders of them")
    student: str = option("", "The model that sampled them; only its tokenizer is loaded")
    contexts: str = option("", "Parquet file to write, of the schema `contexts`")
    update_prompts: int = option(0, "Prompts set aside for updates, the others are the bank; 0 is a quarter", "prompts")
    seed: int = option(0, "Seed of that draw", "integer")
    revision: str = option("main", "Hub revision of the student", panel=MODELS)
    end_of_text: str = option(
        "",
        "Tokens that ended the responses, comma-separated, such as '<|im_end|>', where they are not the student's",
        panel=MODELS,
    )
    trust_remote_code: bool = option(False, TRUST_HELP, panel=MODELS)
    template_options: str = option("", TEMPLATE_OPTIONS, panel=MODELS)
    skip_bad_rows: bool = option(
        False, "Leave out rows that cannot be had exactly, and count them by reason", panel="Rows"
    )
    skip_at_most: float = option(0.5, "Share of all rows that --skip-bad-rows may leave out", "share", panel="Rows")
    strip_padding: bool = option(False, "Take padding off both ends of lists of ids", panel="Rows")

    @property
    def names(self) -> dict[str, str]:
        """What the user calls fields, by the names that the format reads."""
        return {}

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        self._require(bool(self.student), "student", "the model that sampled the rollouts")
        self._require(self.contexts.endswith(".parquet"), "contexts", "the file to write, and end in .parquet")
        self._check_at_least(0, "update_prompts")
        self._require(0 <= self.skip_at_most <= 1, "skip_at_most", "in [0, 1]")
        self._check_template_options("template_options")


@dataclass(frozen=True, kw_only=True)
class NamedImportSettings(ImportSettings):
    """Those of a format whose fields the user may name."""

    prompt_field: str = option(
        "",
        "Field of the prompt, as text, messages or ids, where it is not prompt or prompt_token_ids: such as prompt_ids "
        "(TRL) or prompts (verl)",
        panel="Fields",
    )
    response_field: str = option(
        "",
        "Field of the response, as text or ids, where it is not response or response_token_ids: such as completion_ids "
        "(TRL), response_ids (SkyRL) or responses (verl)",
        panel="Fields",
    )
    mask_field: str = option(
        "",
        "Field that says with 1 and 0 which ids of the response are the student's, where it is not response_mask: such "
        "as tool_mask (TRL), loss_mask or loss_masks (SkyRL); no other mask is read then",
        panel="Fields",
    )
    split_field: str = option("", "Field that says 'bank' or 'update', where it is not split", panel="Fields")

    @property
    def names(self) -> dict[str, str]:
        """What the user calls fields, by the names that the format reads."""
        given = {
            "prompt": self.prompt_field,
            "response": self.response_field,
            "response_mask": self.mask_field,
            "split": self.split_field,
        }
        return {name: theirs for name, theirs in given.items() if theirs}
