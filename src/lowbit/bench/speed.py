"""Peers side by side in one run: time, agreement with fp32, disk, memory, time to quantize and to load."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from lowbit.bench.inputs import SHAPES, Workload, make_inputs, write_inputs
from lowbit.bench.machine import processor
from lowbit.bench.peer import Peer, Setting
from lowbit.bench.peers import REFERENCE, choose
from lowbit.bench.rounds import Row, measure
from lowbit.bench.worker import PeerFailed, Worker, quantized
from lowbit.checkpoint import checkpoint_folder
from lowbit.errors import BenchError, UnsupportedModelError
from lowbit.loop import Progress, isolated_rng

RANDOM_BERT = "BERT-base, random"


def speed(
    model: str | Path | None = None,
    *,
    peers: Sequence[str] | None = None,
    shapes: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int = 7,
    work: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Run a float ``model`` in every peer that is installed, in turn, and return one row per peer and workload.

    ``model`` is a folder or hub id of an encoder or decoder; None is BERT-base with random weights. ``peers`` are names
    or families, None all of them; fp32 in eager torch is always there, as ratios and cosines refer to it. ``shapes``
    are rows x tokens. ``texts`` are run in their true lengths, in batches of 32 in file order and sorted by length;
    shapes and calibrations are then cut from them, else from random tokens. ``threads`` None is torch's own choice.
    ``work`` is a folder that keeps what the peers quantized, for the next run with the same model and calibration.

    A row of a peer that is absent has ``absent``, one that failed ``error``, with the reason. Nothing that a peer does
    ends the run. All loaded peers are in memory at once, each in a process of its own.
    """
    threads = threads or torch.get_num_threads()
    if threads < 1 or rounds < 1:
        raise BenchError(f"threads and rounds are 1 or more, not {threads} and {rounds}")
    chosen = choose(peers)
    with ExitStack() as stack:
        folder = Path(work or stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder.mkdir(parents=True, exist_ok=True)
        source = random_bert(folder / "float") if model is None else checkpoint_folder(model)
        config = AutoConfig.from_pretrained(source)
        if config.is_encoder_decoder:
            raise UnsupportedModelError(f"{model}: is an encoder with a decoder; give a model that is one of them")
        named = SHAPES if shapes is None and texts is None else shapes or ()
        setting, workloads = make_inputs(
            named, threads, vocabulary=config.vocab_size, tokenizer=_tokenizer(source), texts=texts
        )
        _claim(folder, str(model or RANDOM_BERT), setting)
        write_inputs(folder / "inputs.json", setting, workloads)
        common = {"model": RANDOM_BERT if model is None else Path(model).name, "threads": threads, "cpu": processor()}
        found = _compare(chosen, source, folder, workloads, rounds, stack, progress)
    return [{**common, **row, **_made_with()} for row in found]


def random_bert(folder: Path) -> Path:
    """BERT-base with random weights, always the same; what ``folder`` holds already is left."""
    if not (folder / "config.json").exists():
        with isolated_rng(0):
            BertModel(BertConfig()).save_pretrained(folder)
    return folder


def _compare(
    peers: Sequence[Peer],
    source: Path,
    folder: Path,
    workloads: Sequence[Workload],
    rounds: int,
    stack: ExitStack,
    progress: Progress | None,
) -> list[Row]:
    """Rows without what all of them have in common."""
    rows: list[Row] = []
    about: dict[str, Row] = {}
    workers: dict[str, Worker] = {}
    where: dict[str, Path] = {}
    steps = [0, 3 * len(peers) + len(workloads) * len(peers) * (rounds + 1)]

    def tick(what: str) -> None:
        if progress is not None:
            progress(min(steps[0], steps[1]), steps[1], what)
        steps[0] += 1

    for peer in peers:
        about[peer.name] = {"peer": peer.name, "version": peer.version}
        reason = peer.missing()
        if reason is not None:
            rows.append(about[peer.name] | {"absent": reason})
            continue
        tick(f"{peer.name}: quantizing")
        inputs, log = folder / "inputs.json", folder / f"{peer.name}.log"
        try:
            where[peer.name], cost = quantized(peer, source, folder / peer.name, inputs, log)
        except PeerFailed as error:
            rows.append(about[peer.name] | {"error": str(error)})
            continue
        about[peer.name] |= cost
        workers[peer.name] = Worker(peer, inputs, log)
        stack.callback(workers[peer.name].close)
    for step in ("ready", "load"):  # nobody loads while others still make their imports
        for name, worker in list(workers.items()):
            tick(f"{name}: loading")
            try:
                about[name]["load_seconds"] = worker.ask(step, *([where[name]] if step == "load" else []))
            except PeerFailed as error:
                rows.append(about[name] | {"error": str(error)})
                del workers[name]
    for index, workload in enumerate(workloads):
        for name, row in measure(workers, index, workload, rounds, REFERENCE.name, tick).items():
            if index == 0 and "error" not in row:
                about[name] |= {"resident_bytes": workers[name].ask("resident")}
            rows.append(about[name] | {"workload": workload.name} | row)
    return rows


def _tokenizer(source: Path) -> PreTrainedTokenizerBase | None:
    named = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
    return AutoTokenizer.from_pretrained(source) if any((source / name).exists() for name in named) else None


def _claim(folder: Path, model: str, setting: Setting) -> None:
    """Mark a folder of quantized models as made from this model and calibration, or find that it is another's."""
    ids = b"".join(batch["input_ids"].numpy().tobytes() for batch in setting.calibration)
    wanted = {"model": model, "calibration": hashlib.sha256(ids).hexdigest()}
    file = folder / "made_from.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != wanted:
        raise BenchError(f"{folder} holds what was quantized from another model or calibration; give a new folder")
    file.write_text(json.dumps(wanted), encoding="utf-8")


def _made_with() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "transformers", "lowbit")}
    return {"date": datetime.date.today().isoformat(), **versions}
