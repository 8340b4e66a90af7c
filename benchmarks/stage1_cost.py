"""Cost of stage 1, disk to disk, beside loading and saving the same file; appends to results/stage1_cost.jsonl.

Every measurement is a process of its own; copy and strategies take turns. Memory is the peak of private (anonymous)
memory while quantizing, over what the process had after its imports: mapped reads of the source do not count. gptq,
which loads and runs the model, is measured where it is asked for.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from geometry import bert_base
from rows import RESULTS, append
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.bench.machine import processor
from lowbit.strategies import needs_hessian, strategy_names


def main() -> None:
    """Take turns, then report medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data_free = [name for name in strategy_names() if not needs_hessian(lowbit.Scheme(strategy=name))]
    parser.add_argument("--strategies", nargs="+", default=data_free, choices=strategy_names(), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "SOURCE", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        what, source, output = arguments.child
        print(json.dumps(measure(what, Path(source), Path(output))))
        return
    found: dict[str, list[dict]] = {what: [] for what in ("copy", *arguments.strategies)}
    with tempfile.TemporaryDirectory() as temporary:
        source = bert_base(Path(temporary) / "float")
        largest = max(tensor.nbytes for tensor in load_file(source / "model.safetensors").values())
        for turn in range(arguments.rounds):
            for what, results in found.items():
                child = ["--child", what, str(source), f"{temporary}/{what}-{turn}"]
                command = [sys.executable, __file__, "--threads", str(arguments.threads), *child]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    copy = statistics.median(result["seconds"] for result in found["copy"])
    for strategy in arguments.strategies:
        times = [result["seconds"] for result in found[strategy]]
        peak = max(result["peak"] for result in found[strategy])
        row = {
            "geometry": "BERT-base",
            "strategy": strategy,
            "scheme": "w4",
            "seconds": round(statistics.median(times), 3),
            "seconds_all": [round(value, 3) for value in times],
            "copy_seconds": round(copy, 3),
            "copy_seconds_all": [round(result["seconds"], 3) for result in found["copy"]],
            "ratio": round(statistics.median(times) / copy, 2),
            "peak_private_mib": round(peak / 2**20, 1),
            "largest_tensor_mib": round(largest / 2**20, 1),
            "memory_ratio": round(peak / largest, 2),
            "threads": arguments.threads,
            "cpu": processor(),
        }
        append(RESULTS / "stage1_cost.jsonl", row)


def measure(what: str, source: Path, output: Path) -> dict:
    """Seconds and peak private bytes of one run in this process."""
    recipe = None if what == "copy" else lowbit.Recipe(scheme=lowbit.Scheme(bits=4, strategy=what))
    before, peak, stop = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    if recipe is None:
        output.mkdir()
        save_file(load_file(source / "model.safetensors"), output / "model.safetensors")
    else:
        lowbit.quantize(source, recipe, output=output)
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    return {"seconds": seconds, "peak": peak[0] - before}


def private_bytes() -> int:
    """Anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not report RssAnon; run on Linux")


if __name__ == "__main__":
    main()
