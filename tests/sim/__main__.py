"""Many seeds: `python -m tests.sim --seeds 0:100000 [--mode b]`; one, told: `python -m tests.sim --tell 17`.

`--shrink 17` cuts a seed that fails down to a scenario, `--mutants` puts known defects back, each of which
must be found, `--coverage` fails also when a cell of the protocol's state tables was never reached.
Exit 0: no violation. Exit 1: the seeds that failed, each with its mode, for `--tell`.
"""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext

from tests.sim import coverage
from tests.sim.cluster import MODES
from tests.sim.generator import PROFILES, plan_of
from tests.sim.mutants import MUTANTS, breaks, holds, seeds_needed
from tests.sim.plan import Plan
from tests.sim.shrink import shrink
from tests.sim.story import ViolationError, run

_CHUNK_SEEDS = 500


def run_seeds(first: int, last: int, profile: str | None, mode: str) -> tuple[int, Counter[str], list[str]]:
    """Seeds first to last - 1: how many ran, what was covered, what failed."""
    covered: Counter[str] = Counter()
    failures = []
    for seed in range(first, last):
        try:
            covered.update(run(plan_of(seed, profile), mode=mode).world.covered)
        except ViolationError as error:
            failures.append(f"seed {seed}: {error}")
    return last - first, covered, failures


def _chunks(first: int, last: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, _CHUNK_SEEDS):
        yield start, min(last, start + _CHUNK_SEEDS)


def _many(first: int, last: int, jobs: int, profile: str | None, mode: str, *, cells: bool) -> int:
    began = time.monotonic()
    covered: Counter[str] = Counter()
    failures: list[str] = []
    done = 0
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run_seeds, *chunk, profile, mode) for chunk in _chunks(first, last)]
        for future in as_completed(waiting):
            count, seen, failed = future.result()
            done += count
            covered += seen
            failures += failed
            for failure in failed:
                print(failure, flush=True)
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{done} of {last - first} seeds, {len(failures)} failed ")
    minutes = (time.monotonic() - began) / 60
    print(
        f"{done} seeds of mode {mode} in {minutes:.1f} min ({done / minutes:.0f} a minute),"
        f" {len(failures)} failed"
    )
    for what, count in coverage.table(covered):
        print(f"{count:>12}  {what}")
    if cells:
        for cell, why in coverage.UNREACHABLE.items():
            print(f"{'no story':>12}  {cell}: {why}")
    else:
        for what, count in sorted(covered.items()):
            if not what.startswith(("cell ", "hook ")):
                print(f"{count:>12}  {what}")
    lost = coverage.missing(covered) if cells else []
    for what in lost:
        print(f"never reached: {what}")
    return 1 if failures or lost else 0


def _mutants(names: list[str]) -> int:
    missed = 0
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        seeds = seeds_needed(mutant)
        missed += seeds is None
        found = f"seed {seeds:>5} of {mutant.seeds_max}" if seeds else f"NOT FOUND in {mutant.seeds_max}"
        print(f"{mutant.name}  {found}  {mutant.profile or 'any profile':<16}  {mutant.defect}", flush=True)
    return 1 if missed else 0


def _shrink(seed: int, profile: str | None, mode: str, names: list[str]) -> int:
    mutants = [mutant for mutant in MUTANTS if mutant.name in names]
    if mutants and profile is None:
        profile = mutants[0].profile

    def fails(plan: Plan) -> bool:
        return breaks(plan, mutants[0], mode) if mutants else not holds(plan, mode)

    small = shrink(plan_of(seed, profile), fails)
    with mutants[0].patch() if mutants else nullcontext():
        try:
            run(small, trace=True, mode=mode)
        except ViolationError as error:
            print(error)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:1000", help="FIRST:END, the end not included")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--profile", choices=list(PROFILES))
    parser.add_argument("--mode", choices=MODES, default="a", help="a: objects, b: bytes, c: and disks")
    parser.add_argument("--tell", type=int, metavar="SEED", help="run one seed and print its story")
    parser.add_argument(
        "--coverage", action="store_true", help="fail if a cell of the state tables is missed"
    )
    parser.add_argument("--shrink", type=int, metavar="SEED", help="cut a failing seed down; see --mutants")
    parser.add_argument("--mutants", nargs="*", metavar="M01", help="prove that known defects are found")
    options = parser.parse_args()
    logging.disable()  # of connections that break: they are meant to
    if options.shrink is not None:
        return _shrink(options.shrink, options.profile, options.mode, options.mutants or [])
    if options.mutants is not None:
        return _mutants(options.mutants)
    if options.tell is not None:
        try:
            story = run(plan_of(options.tell, options.profile), trace=True, mode=options.mode)
        except ViolationError as error:
            print(error)
            return 1
        print(story.world.story())
        return 0
    first, last = (int(number) for number in options.seeds.split(":"))
    return _many(first, last, options.jobs, options.profile, options.mode, cells=options.coverage)


if __name__ == "__main__":
    sys.exit(main())
