"""What stands beside every figure: its question, its caption and its alternative text, as data and as a page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from teachdiag.figures.style import Picture
from teachdiag.notes import Schema, read_note, recall, write_note
from teachdiag.tables import write_text

CAPTIONS = "captions"
_SCHEMA: Schema = {...: dict.fromkeys(("question", "caption", "seen"), str)}


@dataclass(frozen=True)
class Caption:
    """The words of one figure.

    Attributes:
        question: what it answers.
        caption: what was measured, on whom and how; what the words mean that are drawn.
        seen: what the picture shows, with its numbers: its alternative text.
    """

    question: str
    caption: str
    seen: str

    @classmethod
    def of(cls, picture: Picture) -> "Caption":
        """Return the words that a figure carries."""
        return cls(picture.question, picture.caption, picture.seen)


def write_captions(folder: Path, captions: Mapping[str, Caption]) -> list[Path]:
    """Write the words of a folder's figures, by name: `captions.json`, and `captions.md` with the pictures.

    Those of earlier figures that are still there stay as they were.
    """
    note, page = folder / f"{CAPTIONS}.json", folder / f"{CAPTIONS}.md"
    earlier = recall(note, _SCHEMA) or {}
    told = {name: words for name, words in earlier.items() if (folder / f"{name}.svg").exists()}
    told |= {name: asdict(caption) for name, caption in captions.items()}
    write_note(told, note)
    parts = [f"## {c['question']}\n\n![{c['seen']}]({name}.svg)\n\n{c['caption']}\n" for name, c in told.items()]
    write_text("# What each figure asks, and shows\n\n" + "\n".join(parts), page)
    return [note, page]


def read_captions(run: Path) -> dict[str, Caption]:
    """Return the words of a run's figures, by name; nothing where none was drawn.

    Raises:
        RunError: they are not as they were written.
    """
    note = run / "figures" / f"{CAPTIONS}.json"
    if not note.exists():
        return {}
    content = read_note(note, _SCHEMA, f"run `teachdiag figures {run}` again")
    return {name: Caption(**words) for name, words in content.items()}
