"""A bank that the released code scored, in its own column names."""

from teachdiag.artefacts.columns import DOUBLE, LONG
from teachdiag.tables import Column, Table

_KEYS = (
    Column("sample_ordinal", LONG, "1", "number of the context in the bank"),
    Column("sample_index", LONG, "1", "number of the sample in its training run"),
    Column("tok_pos", LONG, "tokens", "response position"),
    Column("pos_norm", DOUBLE, "1", "response position / (kept positions - 1)"),
)
MEASURED = (  # in the release's names: unit, meaning
    ("Hs_full", "nats", "student entropy"),
    ("Ht_full", "nats", "teacher entropy"),
    ("KLf_full", "nats", "KL(teacher || student), full vocabulary"),
    ("Cmass_true", "1", "teacher mass on the student's top K"),
    ("CBC", "1", "Bhattacharyya coefficient of both renormalised on the union of the top K"),
    ("Coverlap", "1", "shared share of the two top-K lists"),
    ("reach_t1", "1", "whether the teacher's first choice is in the student's top K"),
    ("target_in_student_topk", "1", "whether the realised token is in the student's top K"),
    ("student_top1_id", "1", "the student's first choice"),
    ("teacher_top1_id", "1", "the teacher's first choice"),
)

RELEASED_BANK = Table(
    name="released_bank",
    folder="released_bank/",
    written_by="import released",
    meaning="Positions that the released code scored, before and after its update, in its own column names.",
    key=("sample_ordinal", "tok_pos"),
    columns=(
        *_KEYS,
        *(
            Column(f"{name}_{when}", DOUBLE, unit, f"{meaning}, {when} the update")
            for when in ("before", "after")
            for name, unit, meaning in MEASURED
        ),
    ),
)
