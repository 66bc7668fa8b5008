"""Breaks runs on purpose, seeded and bounded, on loopback and in temporary folders, and counts what came of it.

``python -m benchmarks.chaos [--only PART …] [--times N] [--minutes M] [--seed S]`` adds to ``results/chaos.json`` after
every run that it disturbed, and writes the table of docs/reliability.md. ``--render`` writes the table only.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from random import Random

from rich.console import Console

from benchmarks.chaos_disk import deleted_databases, locked_store
from benchmarks.chaos_full_disk import STAGES, full_disk
from benchmarks.chaos_jobs import temporary_folder
from benchmarks.chaos_kills import kill_checkpoint_writes, kill_runs, kill_servers
from benchmarks.chaos_outages import outages, prefect_faults
from benchmarks.chaos_registry import at_once, half_hour_outages, late_servers, lost_answers, server_faults
from benchmarks.chaos_store import store_faults
from benchmarks.chaos_table import Trial, read_results, record, table
from flows.cli import set_environment
from flows.doc_sections import DOCS, write_section

Part = Callable[[Path, Iterator[Random]], Iterator[Trial]]

PAGE, SECTION = DOCS / "reliability.md", "chaos"
# How often each is injected at least.
PARTS: dict[Part, int] = {
    kill_runs: 100,
    kill_checkpoint_writes: 50,
    kill_servers: 10,
    lost_answers: 200,
    late_servers: 50,
    server_faults: 100,
    store_faults: 100,
    prefect_faults: 50,
    outages: 6,
    half_hour_outages: 10,
    at_once: 20,
    full_disk: len(STAGES),
    locked_store: 4,
    deleted_databases: 2,
}
NAMES = {part.__name__: " ".join(str(part.__doc__).split()).rstrip(".") for part in PARTS}

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Inject until each part has been injected often enough, or until the time is up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="parts to run")
    parser.add_argument("--times", type=int, help="injections of each part, with those of earlier starts")
    parser.add_argument("--minutes", type=float, default=600, help="start no further run after this time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="forget earlier results of these parts")
    parser.add_argument("--render", action="store_true", help="write the table from the last results")
    chosen = parser.parse_args()
    set_environment()
    end = time.monotonic() + 60 * chosen.minutes
    for part, least in PARTS.items() if not chosen.render else ():
        if part.__name__ in chosen.only:
            inject(part, chosen.times or least, chosen.seed, end, again=chosen.again)
    write_section(PAGE, SECTION, table(read_results(), NAMES))


def inject(part: Part, times: int, seed: int, end: float, *, again: bool = False) -> None:
    """Run a part until it has injected so often, with what it has injected before; record every run."""
    trials = [] if again else [Trial(**trial) for trial in read_results().get(part.__name__, {}).get("trials", [])]
    if sum(trial.injected for trial in trials) >= times:
        return
    console.print(f"{part.__name__}: {NAMES[part.__name__]}")
    with temporary_folder() as home:
        for trial in part(home, seeds(part, seed, len(trials))):
            trials.append(trial)
            record(part.__name__, {"date": str(date.today()), "seed": seed, "trials": [asdict(one) for one in trials]})
            console.print(f"  {trial}")
            if sum(one.injected for one in trials) >= times or time.monotonic() >= end:
                return


def seeds(part: Part, seed: int, start: int) -> Iterator[Random]:
    """A source of random numbers for each run of a part, from that of the first one left."""
    number = start
    while True:
        yield Random(f"{part.__name__} {seed} {number}")
        number += 1


if __name__ == "__main__":
    main()
