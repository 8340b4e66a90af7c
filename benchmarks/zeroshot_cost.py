"""Cost of a step of zero-shot training, of SAM and of the generator; appends to results/zeroshot_cost.jsonl.

Each case is a run of ``lowbit.zeroshot`` on MiniLM, beside the same loop with rho = 0 and a generator that stays as it
is. Time is that of whole steps, drawing the batch and the teacher's outputs included; the first step and the last one,
which is followed by a measurement, do not count. With one thread on a CPU it is the processor's. Every measurement is a
process of its own; the cases take turns. Memory is measured as in tuning_cost.py, during the same steps. What the file
already has is not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from rows import RESULTS, append, done
from tuning_cost import Memory

import lowbit
from lowbit.bench.machine import processor
from lowbit.demo import minilm_folder
from lowbit.loop import default_device, use_bf16

FILE = RESULTS / "zeroshot_cost.jsonl"
KEY = ("model", "scheme", "generator", "precision", "batch", "length", "device", "threads")


class Case(NamedTuple):
    """A method, and whether its student is perturbed."""

    method: str
    sharp: bool


CASES = {
    "plain": Case("no-sga", sharp=False),
    "SAM": Case("no-sga", sharp=True),
    "generator": Case("no-sam", sharp=False),
    "both": Case("zsaq", sharp=True),
}


def main() -> None:
    """Take turns, then report medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scheme", default="w2a8")
    parser.add_argument("--generator", type=Path, help="folder of a causal language model; default a built-in one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=24, help="tokens of a row, the two special ones included")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps(measure(CASES[arguments.child], minilm_folder(), arguments)))
        return
    common = {
        "model": "MiniLM-L6",
        "scheme": arguments.scheme,
        "generator": arguments.generator.name if arguments.generator else None,
        "precision": "bf16" if use_bf16("auto", default_device()) else "fp32",
        "batch": arguments.batch,
        "length": arguments.length,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": arguments.threads,
    }
    if not done(FILE, common, KEY):
        for row in run(arguments):
            append(FILE, common | row)


def run(arguments: argparse.Namespace) -> list[dict]:
    """A row per case: memory measured once, time in rounds in which the cases take turns."""
    options = ("scheme", "generator", "threads", "steps", "batch", "length")
    command = [sys.executable, __file__]
    for name in options:
        if getattr(arguments, name) is not None:
            command += [f"--{name}", str(getattr(arguments, name))]

    def child(case: str, **environment: str) -> dict:
        of_case = [*command, "--child", case]
        output = subprocess.run(of_case, check=True, stdout=subprocess.PIPE, env=os.environ | environment).stdout
        return json.loads(output.splitlines()[-1])

    peaks = {case: child(case, MALLOC_MMAP_THRESHOLD_=str(2**20))["peak"] for case in CASES}
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(arguments.rounds):
        for case in CASES:
            seconds[case] += child(case)["seconds"]
    return [{"case": case} | summary(case, seconds, peaks) for case in CASES]


def summary(case: str, seconds: dict[str, list[float]], peaks: dict[str, int]) -> dict:
    """What is reported of one case, beside the plain loop."""
    median, plain = statistics.median(seconds[case]), statistics.median(seconds["plain"])
    return {
        "seconds": round(median, 4),
        "seconds_spread": round(statistics.stdev(seconds[case]), 4) if len(seconds[case]) > 1 else None,
        "seconds_all": [round(value, 4) for value in seconds[case]],
        "time_ratio": round(median / plain, 3),
        "peak_mib": round(peaks[case] / 2**20, 1),
        "memory_ratio": round(peaks[case] / peaks["plain"], 3),
    }


def measure(case: Case, folder: Path, arguments: argparse.Namespace) -> dict:
    """Seconds of each step and peak bytes of one case in this process."""
    watch = Watch(Memory(default_device()))
    ordinary = arguments.length - 2
    options = {"rho": 0.05 if case.sharp else 0.0} if case.method == "no-sga" else {"ratio": 1}
    chosen = lowbit.ZeroShotOptions(
        steps=arguments.steps + 2,
        batch_size=arguments.batch,
        lengths=(ordinary, ordinary),
        generator=arguments.generator,
        evaluate_steps=arguments.steps + 2,
        save_steps=0,
        **options,
    )
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "out"
        lowbit.zeroshot(folder, output, arguments.scheme, method=case.method, options=chosen, progress=watch)
    return {"seconds": watch.seconds, "peak": watch.memory.peak}


class Watch:
    """A progress report that times all steps but the first and the last one, and measures their peak memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.seconds: list[float] = []
        self._last = 0.0

    def __call__(self, step: int, steps: int, _: str) -> None:
        now = self._now()
        if step == 1:
            self.memory.__enter__()
        elif step < steps:
            self.seconds.append(now - self._last)
        if step == steps - 1:
            self.memory.__exit__()
        self._last = now

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


if __name__ == "__main__":
    main()
