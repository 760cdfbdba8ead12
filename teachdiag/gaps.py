"""Where a column holds nothing that counts: nulls, NaNs and infinities.

A module of its own, since Arrow's functions take a tenth of a second that no first line waits for.
"""

import pyarrow as pa
import pyarrow.compute as pc


def first_gap(values: pa.ChunkedArray, nulls_allowed: bool) -> int | None:
    """Return the first row that is null, where none may be, or is or holds a NaN, an infinity, or a null in a list.

    Args:
        values: a column of numbers, text, or lists of these.
        nulls_allowed: whether a whole row may be null.
    """
    whole = values.combine_chunks()
    if not pa.types.is_nested(whole.type):
        return _first_bad(whole, nulls_allowed)
    if whole.null_count and not nulls_allowed:
        return int(pc.index(pc.is_null(whole), True).as_py())
    element = _first_bad(pc.list_flatten(whole), nulls_allowed=False)
    return None if element is None else int(pc.list_parent_indices(whole)[element].as_py())


def _first_bad(values: pa.Array, nulls_allowed: bool) -> int | None:
    good = pc.is_valid(values)
    if pa.types.is_floating(values.type):
        good = pc.and_(good, pc.fill_null(pc.is_finite(values), True))
    if nulls_allowed:
        good = pc.or_(good, pc.is_null(values))
    row = pc.index(good, False).as_py()
    return None if row < 0 else int(row)
