"""A random checkpoint of BERT-base geometry, for measurements where values do not matter."""

import json
import platform
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

import lowbit
from lowbit.loop import isolated_rng

RESULTS = Path(__file__).parent / "results"


def bert_base(folder: Path) -> Path:
    """Save BertModel in its default geometry (110 M parameters, fp32) and return its folder."""
    with isolated_rng(0):
        BertModel(BertConfig()).save_pretrained(folder)
    return folder


def append(name: str, row: dict) -> None:
    """Add one row to a result file."""
    RESULTS.mkdir(exist_ok=True)
    row |= {"torch": torch.__version__.split("+")[0], "lowbit": lowbit.__version__}
    with (RESULTS / name).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def processor() -> str:
    """Name of the processor and the widest instructions that torch uses on it."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
