"""Seeds: every random stream is named, so that no number depends on the order of computation."""

import hashlib


def derive_seed(seed: int, *name: str | int) -> int:
    """Return the seed of one named stream, an integer in [0, 2**63).

    The mapping is a SHA-256 of the root seed and the name, so it is the same on every machine and streams of
    different names are independent for all practical purposes.
    """
    text = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
