"""Runs steps one after the other in one process and ends at the first that fails; `benchmarks.gpu` starts the next one.

So one import of the libraries serves many steps, and neither a failed kernel nor memory that a traceback keeps alive
reaches the step after it. Why a step failed is the end of what the process wrote to standard error.
"""

import argparse
import faulthandler
import time
from pathlib import Path
from pkgutil import resolve_name

from benchmarks.gpu_steps import STEPS
from benchmarks.gpu_steps.bench import Bench, release
from benchmarks.gpu_steps.checks import Record

_SLOWER_CPU = 4  # compiling for a CPU, on a machine with other work


def run_step(name: str, bench: Bench, record: Record, limit: float) -> None:
    """Run a step and record its checks.

    After `limit` seconds the process writes where it is to standard error and ends, even inside a kernel or a compiler.
    """
    started = time.monotonic()
    record.begin(name)
    faulthandler.dump_traceback_later(limit, exit=True)
    for check in resolve_name(STEPS[name].function)(bench):
        record.add(name, check)
        print("   ", "ok  " if check.passed else "FAIL", check.what, check.found, check.wanted, flush=True)  # noqa: T201
    faulthandler.cancel_dump_traceback_later()
    record.end(name, time.monotonic() - started)


def main() -> None:
    """Run the steps named on the command line until one fails, or until `--until`, in seconds since 1970."""
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", nargs="+")
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    bench, record = Bench(arguments.folder, tiny=arguments.tiny), Record(arguments.record)
    for name in arguments.steps:
        left = arguments.until - time.time()
        if left < 1:
            return
        print(f"{time.strftime('%X')} {name}", flush=True)  # noqa: T201
        run_step(name, bench, record, min(STEPS[name].limit * (_SLOWER_CPU if arguments.tiny else 1), left))
        release()


if __name__ == "__main__":
    main()
