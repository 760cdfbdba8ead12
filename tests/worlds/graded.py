"""Contexts whose grades are known: the tiny pair's prompts, with answers that are right, wrong, neither, or cut."""

from pathlib import Path

import pyarrow.parquet as pq
from tiny_pair import byte_tokenizer

from teachdiag.artefacts import CONTEXTS

# What a response says (of its answer, and one more), how it ended, and its grade.
ANSWERS = (
    ("It is {0}.", "stop", "right"),
    ("It is {1}.", "stop", "wrong"),
    ("I do not know.", "stop", "unparseable"),
    ("So {0}", "length", "unparseable"),  # may have gone on to 10 times that
    ("\\boxed{{{0}}} s", "length", "right"),
    ("answer {1}. s", "unknown", "wrong"),
)


def write_graded(
    run: Path, path: Path, each: int = 2, answers: tuple[tuple[str, str, str], ...] = ANSWERS
) -> list[str]:
    """Write a contexts table with the prompts of a run of the tiny pair, `each` responses to a prompt.

    The prompts have names of their own, as imported ones do.

    Returns:
        The grade of every context, by context_id.
    """
    tokenizer, rows, grades = byte_tokenizer(), [], []
    for asked in CONTEXTS.read_arrow(run / "contexts").to_pylist():
        left, right = tokenizer.decode(asked["prompt_token_ids"]).split("is ")[1].split("?")[0].split(" + ")
        for _ in range(each):
            text, finish, grade = answers[(len(rows) + len(rows) // len(answers)) % len(answers)]
            ids = tokenizer(text.format(int(left) + int(right), int(left) + int(right) + 1))["input_ids"]
            ids += [256] * (finish == "stop")
            own = {
                "context_id": len(rows),
                "prompt_id": asked["prompt_id"].replace("sums/", "mine/"),
                "source_row": None,
            }
            rows.append(asked | own | {"response_token_ids": ids, "finish_reason": finish, "sampling_seed": None})
            grades.append(grade)
    pq.write_table(CONTEXTS.build_rows(rows), path)
    return grades
