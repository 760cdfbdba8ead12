"""Judges answers line by line, JSON in and out, in a process that ends itself where one takes too long.

Neither Math-Verify's alarms nor anything else in Python stops a power of large integers; a thread of C does.
"""

import contextlib
import faulthandler
import json
import os
import sys
from typing import Any

from teachdiag.diagnostics.grading.extraction import UnreadableError
from teachdiag.diagnostics.grading.judging import GoldError, gym_problems, judge, judge_by_gym

_MEMORY = 4 * 2**30  # bytes


def answered(asked: dict[str, Any]) -> dict[str, Any]:
    """Judge one request: {"outcome": ..., "answer": ...}, or {"gold": what is wrong with the gold answer}."""
    try:
        right, answer = judge_by_gym(**asked["gym"]) if "gym" in asked else judge(**asked["mathematics"])
    except GoldError as error:
        return {"gold": str(error)}
    except UnreadableError:
        return {"outcome": "unparseable"}
    except Exception:  # of sympy, memory or recursion: neither right nor wrong
        return {"outcome": "unparseable", "given_up": True}
    return {"outcome": "right" if right else "wrong", "answer": answer}


def main() -> None:
    """Answer requests until standard input ends; the argument is the limit of one in seconds."""
    limit = float(sys.argv[1])
    with contextlib.suppress(ImportError, OSError, ValueError):  # where the system has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print is no reply
    print("{}", file=replies, flush=True)  # everything is imported
    for line in sys.stdin:
        asked = json.loads(line)
        if "gym" in asked:
            source = asked["gym"]["source"]
            gym_problems(source["dataset"], source["size"], source["seed"])
        faulthandler.dump_traceback_later(limit, exit=True)
        reply = answered(asked)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
