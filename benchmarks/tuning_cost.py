"""Cost of a training step of stage 2, beside full fine-tuning and LoRA; appends to results/tuning_cost.jsonl.

A step is forward, backward and AdamW on a batch of random tokens, in BERT-base geometry. Every measurement is a
process of its own; the methods take turns. With one thread on a CPU the time is the processor's, in which other work on
the machine counts little. Memory is the peak during the steps over what the process had after its imports: private
(anonymous) memory on a CPU, allocated memory on a GPU. It has a process of its own, in which the C library gives back
what is freed at once; otherwise a third of the peak would be holes. What the file already has is not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from geometry import bert_base
from peft import LoraConfig, get_peft_model
from rows import RESULTS, append, done
from stage1_cost import private_bytes
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import lowbit
from lowbit.bench.machine import processor
from lowbit.loop import PRECISIONS, isolated_rng, trainable_attention, use_bf16
from lowbit.nn import QuantModule
from lowbit.tuning import activations_remade, prepare
from lowbit.tuning.dropout import dropout_of

FILE = RESULTS / "tuning_cost.jsonl"
KEY = ("geometry", "method", "cache", "dropout", "precision", "batch", "length", "device", "threads")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Case(NamedTuple):
    """A method, the dtype of its decoded weights (``none`` where they are decoded at each use), and its dropout."""

    method: str
    cache: str
    dropout: str


FULL = Case("full", "none", "0.1")  # what the others are compared with


class Method(NamedTuple):
    """``setup`` makes a model train what the method trains: the quantized one, if ``backbone``, or the float one.

    ``dropouts``: those of the model, 0.1, or none.
    """

    setup: Callable[[PreTrainedModel], torch.nn.Module]
    backbone: bool
    dropouts: tuple[str, ...] = ("0.1", "0")


def lora(model: PreTrainedModel) -> torch.nn.Module:
    """LoRA of rank 8 on all linears of the blocks; the classifier is trained, too."""
    linears = r".*encoder\.layer\..*\.(query|key|value|dense)"
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=linears))


def outliers(model: PreTrainedModel) -> torch.nn.Module:
    """Outliers, norms, biases, step sizes and the head."""
    prepare(model)
    return model


# A method on the quantized backbone, such as LoRA on it, is one more line with ``backbone=True``.
METHODS = {
    "full": Method(lambda model: model, backbone=False),
    "outliers": Method(outliers, backbone=True, dropouts=("0",)),
    "lora": Method(lora, backbone=False),
}


def main() -> None:
    """Take turns, then report medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round, after one that is not")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--child", nargs=4, metavar=("METHOD", "CACHE", "DROPOUT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.precision = "bf16" if use_bf16(arguments.precision, torch.device(arguments.device)) else "fp32"
    if arguments.child:
        *case, folder = arguments.child
        print(json.dumps(measure(Case(*case), Path(folder), arguments)))
        return
    common = {
        "geometry": "BERT-base",
        "precision": arguments.precision,
        "batch": arguments.batch,
        "length": arguments.length,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else processor(),
        "threads": arguments.threads,
    }
    wanted = cases(common)
    for row in run(wanted, arguments) if wanted else []:
        append(FILE, common | row)


def cases(common: dict) -> list[Case]:
    """What is not measured yet, behind full fine-tuning, which is run again for the others to be compared with."""
    wanted = []
    for name, method in METHODS.items():
        for cache in ("none", common["precision"]) if method.backbone else ("none",):
            wanted += [Case(name, cache, dropout) for dropout in method.dropouts]
    missing = [case for case in wanted if case != FULL and not done(FILE, common | case._asdict(), KEY)]
    return [FULL, *missing] if missing else []


def run(wanted: list[Case], arguments: argparse.Namespace) -> list[dict]:
    """A row per case: memory measured once, time in rounds in which the cases take turns."""
    seconds: dict[Case, list[float]] = {case: [] for case in wanted}
    memory: dict[Case, dict] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {False: bert_base(Path(temporary) / "float"), True: Path(temporary) / "backbone"}
        lowbit.quantize(folders[False], lowbit.Recipe(scheme=lowbit.Scheme(strategy="minmax")), output=folders[True])
        options = ("device", "precision", "threads", "steps", "batch", "length")
        command = [sys.executable, __file__]
        command += [text for name in options for text in (f"--{name}", str(getattr(arguments, name)))]

        def child(case: Case, **environment: str) -> dict:
            of_case = [*command, "--child", *case, str(folders[METHODS[case.method].backbone])]
            output = subprocess.run(of_case, check=True, stdout=subprocess.PIPE, env=os.environ | environment).stdout
            return json.loads(output.splitlines()[-1])

        for case in wanted:
            memory[case] = child(case, MALLOC_MMAP_THRESHOLD_=str(2**20))
        for _ in range(arguments.rounds):
            for case in wanted:
                seconds[case] += child(case)["seconds"]
    return [case._asdict() | summary(seconds[case], memory[case], seconds[FULL], memory[FULL]) for case in wanted]


def summary(seconds: list[float], memory: dict, full_seconds: list[float], full_memory: dict) -> dict:
    """What is reported of one case, beside full fine-tuning."""
    median = statistics.median(seconds)
    return {
        "seconds": round(median, 4),
        "seconds_spread": round(statistics.stdev(seconds), 4) if len(seconds) > 1 else None,
        "seconds_all": [round(value, 4) for value in seconds],
        "time_ratio": round(median / statistics.median(full_seconds), 3),
        "peak_mib": round(memory["peak"] / 2**20, 1),
        "memory_ratio": round(memory["peak"] / full_memory["peak"], 3),
        "trained": memory["trained"],
    }


def measure(case: Case, folder: Path, arguments: argparse.Namespace) -> dict:
    """Seconds of each step and peak bytes of one case in this process."""
    device = torch.device(arguments.device)
    memory = Memory(device)
    with isolated_rng(0):
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        ids = torch.randint(model.config.vocab_size, (arguments.batch, arguments.length), device=device)
        labels = torch.randint(2, (arguments.batch,), device=device)
        model = METHODS[case.method].setup(model)
    model._apply(lambda tensor: tensor.clone())  # none of it in mapped files, which do not count as private memory
    model.to(device).train()
    if case.cache != "none":
        for module in model.modules():
            if isinstance(module, QuantModule):
                module.cache(DTYPES[case.cache])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)

    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def step() -> float:
        start = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    attention = trainable_attention(device, arguments.precision == "bf16")
    with activations_remade(model), dropout_of(model, float(case.dropout)), attention, memory:
        step()
        seconds = [step() for _ in range(arguments.steps)]
    return {"seconds": seconds, "peak": memory.peak, "trained": sum(p.numel() for p in trained)}


class Memory:
    """Peak bytes inside the ``with`` block over what there was when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start, self.peak, self._stop = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self.peak = torch.cuda.max_memory_allocated() - self._start
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self._now() - self._start)

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self._cuda else private_bytes()


if __name__ == "__main__":
    main()
