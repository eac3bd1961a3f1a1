"""One contestant of a benchmark, in a process of its own: run by `processes.py`.

    python contestants.py NAME NETWORK WEIGHTS SIZE THREADS

Reads questions and writes answers, a line of JSON each; no more lines: the end.

- `["result", WHAT, B]` → what the function returns for B images;
- `["time", WHAT, B, CALLS]` → milliseconds of each call;
- `["forget"]`, and later `["memory"]` → the most megabytes between the two, see `measuring.memory`;
- `["highest"]` → the most megabytes of the process since it began or `"forget"`.

Needs only NumPy and the library it measures, since those live in different environments.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import forget_memory, images, memory, milliseconds, resident


def main() -> None:
    """Answers until the questions end."""
    # what libraries print goes to stderr, so that answers stay alone on stdout
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, network, weights, size, threads = sys.argv[1:]
    module = importlib.import_module("training_contestants" if "training" in name else "inference_contestants")
    functions = getattr(module, name)(network, Path(weights), int(threads))
    prepare = functools.lru_cache(1)(lambda count: functions.get("prepare", lambda x: x)(images(count, int(size))))
    answers.write(json.dumps(sorted(functions)) + "\n")
    for line in sys.stdin:
        question, *details = json.loads(line)
        answer: Any = None
        if question == "result":
            what, count = details
            answer = np.asarray(functions[what](prepare(count))).tolist()
        elif question == "time":
            what, count, calls = details
            answer = [milliseconds(functions[what], prepare(count)) for _ in range(calls)]
            time.sleep(0.01)  # threads that still spin would disturb the next contestant
        elif question == "forget":
            forget_memory()
        elif question == "memory":
            answer = memory()
        elif question == "highest":
            answer = resident("VmHWM")
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
