"""What execution layouts change: predictions on real text, bytes in memory, and the time of a switch of adapters.

Rows go to benchmarks/results/runtime.jsonl. `agreement`: MiniLM, an SST-2 adapter trained on some rows, and how many
predictions on dev a layout changes. `memory` and `switch`: BERT-base geometry with random weights.

    LOWBIT_DATA=/path/to/data python benchmarks/runtime_study.py --work build/runtime
"""

import argparse
import importlib.util
import itertools
import statistics
import time
from pathlib import Path

import torch
from geometry import bert_base
from rows import RESULTS, Row, append
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, OPTConfig, T5Config

import lowbit
from lowbit.adapter import load
from lowbit.bench.machine import processor
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode, glue_data, intent_data
from lowbit.demo import minilm_folder
from lowbit.loop import isolated_rng, predict_logits
from lowbit.nn import Int8Linear
from lowbit.runtime import load_task, prepare, switch
from lowbit.runtime.memory import ScratchLinear

FILE = RESULTS / "runtime.jsonl"
KINDS = ("agreement", "memory", "switch", "generation")
LAYOUTS = {"latency": "torch", "memory": "torch", "openvino": "openvino"}
TRAIN_ROWS, CALIBRATION = 4_000, 128
SWITCHES = 40
GENERATORS = {
    "OPT-125m": (AutoModelForCausalLM, OPTConfig()),
    "GPT-2": (AutoModelForCausalLM, GPT2Config()),
    "T5-small": (AutoModelForSeq2SeqLM, T5Config(decoder_start_token_id=0)),
}
TOKENS, ROUNDS = 16, 4  # of the prompt and of the answer


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="folder with the GLUE tasks; default LOWBIT_DATA")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--schemes", nargs="+", default=["w4", "w8"])
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps models between calls")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    kinds = arguments.kinds
    for scheme in arguments.schemes if "agreement" in kinds else ():
        agreement(arguments.work, scheme, arguments.data_dir)
    source, folder = arguments.work / "bert", arguments.work / "bert-w4"
    if not folder.exists() and {"memory", "switch"} & set(kinds):
        lowbit.quantize(bert_base(source), "w4", output=folder)
    if "memory" in kinds:
        memory(folder, source)
    if "switch" in kinds:
        switching(folder, arguments.work)
    for name in GENERATORS if "generation" in kinds else ():
        generation(name, arguments.work)


def agreement(work: Path, scheme: str, data_dir: str | None) -> None:
    """One row per layout: on how many rows of dev its prediction is another than that of the unprepared model."""
    backbone, adapter = work / f"minilm-{scheme}", work / f"sst2-{scheme}"
    data = glue_data("sst2", data_dir, train_rows=TRAIN_ROWS, seed=0)
    if not backbone.exists():
        lowbit.quantize(minilm_folder(), scheme, output=backbone)
    if not adapter.exists():
        options = lowbit.TuneOptions(epochs=1, batch_size=16, cache="fp32", precision="fp32")
        lowbit.tune(backbone, adapter, data, options=options)
    tokenizer, dev = load_tokenizer(backbone), data.evaluations["dev"]
    features = [{k: v for k, v in row.items() if k != "labels"} for row in encode(dev, tokenizer, 128)]
    labels = torch.tensor(dev.labels)
    plain = predict_logits(load(backbone, adapter), tokenizer, features, precision="fp32").argmax(dim=1)
    for layout, backend in LAYOUTS.items():
        if importlib.util.find_spec(backend) is None:
            continue
        texts = data.training_rows().texts[:CALIBRATION] if backend == "openvino" else None
        mode = "memory" if layout == "memory" else "latency"
        model = prepare(load(backbone, adapter), mode=mode, backend=backend, calibration=texts)
        found = predict_logits(model, tokenizer, features, precision="fp32").argmax(dim=1)
        row = {
            "kind": "agreement",
            "scheme": scheme,
            "layout": layout,
            "rows": len(labels),
            "changed": int((found != plain).sum()),
            "accuracy_before": round(float((plain == labels).float().mean()), 4),
            "accuracy": round(float((found == labels).float().mean()), 4),
        }
        append(FILE, row | _machine())


def memory(folder: Path, source: Path) -> None:
    """One row per layout: bytes of everything that the model holds, and those of its float original."""
    whole = sum(parameter.nbytes for parameter in load(source).parameters())
    for layout in ("latency", "memory"):
        held = model_bytes(prepare(load(folder), mode=layout, backend="torch"))
        row = {"kind": "memory", "scheme": "w4", "layout": layout, "bytes": held, "fp32_bytes": whole}
        append(FILE, row | _machine())


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters, buffers and laid-out weights, each memory once."""
    tensors, packed = [*model.parameters(), *model.buffers()], 0
    for module in model.modules():
        if isinstance(module, ScratchLinear):
            packed += module.packed.nbytes
            tensors += [module.scale, module.apart, module.apart_weight]
        elif isinstance(module, Int8Linear):
            layout = module.layout
            tensors += [layout.packed, layout.scale, layout.sums, layout.bias]
            tensors += [layout.rest.ptr, layout.rest.col, layout.rest.value]
    return packed + sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def switching(folder: Path, work: Path) -> None:
    """Time of a switch between two adapters that are in memory, and the bytes of one of them."""
    adapters = [work / f"bert-task-{seed}" for seed in range(2)]
    for seed, adapter in enumerate(adapters):
        if not adapter.exists():
            options = lowbit.TuneOptions(epochs=1, learning_rate=0.05, seed=seed, save_steps=0)
            lowbit.tune(folder, adapter, intent_data(train_rows=64, seed=seed), options=options)
    model = prepare(load(folder, adapters[0]), backend="torch")
    tasks = [load_task(model, adapter) for adapter in adapters]
    times = []
    for task in itertools.islice(itertools.cycle(tasks), SWITCHES):
        start = time.perf_counter()
        switch(model, task)
        times.append(time.perf_counter() - start)
    low, _, high = statistics.quantiles(times, n=4)
    row = {"kind": "switch", "scheme": "w4", "layout": "latency", "bytes": tasks[0].nbytes}
    append(FILE, row | {"seconds": statistics.median(times), "quartiles": [low, high]} | _machine())


def generation(name: str, work: Path) -> None:
    """One row per layout and batch: seconds of greedy decoding, and how many times faster than float that is."""
    kind, config = GENERATORS[name]
    source, folder = work / name, work / f"{name}-w4"
    if not folder.exists():
        with isolated_rng(0):
            kind.from_config(config).save_pretrained(source)
        lowbit.quantize(source, "w4", output=folder)
    models = {"float": kind.from_pretrained(source).eval()}
    for mode in ("latency", "memory"):
        models[mode] = prepare(kind.from_pretrained(folder).eval(), mode=mode, backend="torch")
    for batch in (1, 8):
        ids = torch.randint(5, config.vocab_size, (batch, TOKENS), generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {layout: [] for layout in models}
        for _, (layout, model) in itertools.product(range(ROUNDS), models.items()):
            start = time.perf_counter()
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
            )
            times[layout].append(time.perf_counter() - start)
        medians = {layout: statistics.median(found[1:]) for layout, found in times.items()}  # the first warms up
        for layout, seconds in medians.items():
            row = {"kind": "generation", "scheme": "w4", "layout": layout, "model": name, "batch": batch}
            append(FILE, row | {"seconds": seconds, "ratio": medians["float"] / seconds} | _machine())


def _machine() -> Row:
    return {"threads": torch.get_num_threads(), "cpu": processor()}


if __name__ == "__main__":
    main()
