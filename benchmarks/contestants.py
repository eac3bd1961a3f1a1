"""One contestant of a benchmark, in a process of its own: run by `processes.py`.

    python contestants.py NAME NETWORK WEIGHTS SIZE THREADS

Reads questions and writes answers, a line of JSON each; no more lines: the end.

- `["result", WHAT, B]` → what the function returns for B images;
- `["time", WHAT, B, CALLS]` → milliseconds of each call;
- `["memory", WHAT, B]` → megabytes during a call, see `memory`;
- `["highest", WHAT, B]` → the most megabytes of the process so far.

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

import numpy as np
from measuring import images, memory, milliseconds, resident


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
        question, what, count, *calls = json.loads(line)
        function, batch = functions[what], prepare(count)
        if question == "result":
            answer = np.asarray(function(batch)).tolist()
        elif question == "memory":
            answer = memory(function, batch)
        elif question == "highest":
            answer = resident("VmHWM")
        else:
            answer = [milliseconds(function, batch) for _ in range(*calls)]
            time.sleep(0.01)  # threads that still spin would disturb the next contestant
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
