"""What peers are timed on: random or real tokens in fixed shapes, and real texts in their true lengths."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lowbit.bench.peer import Batch, Setting
from lowbit.errors import BenchError
from lowbit.loop import batches

SHAPES = ("1x32", "1x128", "1x384", "8x128", "32x128")
IN_FILE_ORDER, BY_LENGTH = "text in file order", "text by length"

_ROWS = 32  # of a batch in file order
_LONGEST = 512
_CALIBRATION = (64, 128)  # most rows, and the tokens of a random one


@dataclass(frozen=True)
class Workload:
    """Batches that are run one after another, and how many texts they hold."""

    name: str
    batches: list[Batch]
    texts: int


def parse_shape(text: str) -> tuple[int, int]:
    """Rows and tokens of a shape as in ``8x128``; anything else raises :class:`BenchError`."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip())
    if found is None:
        raise BenchError(f"{text!r} is not a shape; write rows x tokens, as in 8x128")
    return int(found[1]), int(found[2])


def make_inputs(
    shapes: Sequence[str],
    threads: int,
    *,
    vocabulary: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Setting, list[Workload]]:
    """What peers are given, and a workload per shape; with texts two more, those texts in file order and by length.

    Without texts, tokens are drawn evenly from ``vocabulary`` ids, for the calibration as well.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _encode(texts, tokenizer) if texts is not None else []
    stream = torch.tensor([token for row in rows for token in row], dtype=torch.long)

    def tokens(shape: tuple[int, int]) -> Batch:
        if not rows:
            return _whole(torch.randint(vocabulary, shape, generator=generator))
        size = shape[0] * shape[1]
        return _whole(stream.repeat(-(-size // len(stream)))[:size].view(shape))

    calibration = tuple(tokens((1, _CALIBRATION[1])) for _ in range(_CALIBRATION[0]))  # the same for any shapes
    workloads = [Workload(shape.strip(), [tokens(parse_shape(shape))], parse_shape(shape)[0]) for shape in shapes]
    if not rows:
        return Setting(threads, calibration), workloads
    by_length = list(batches([{"input_ids": row} for row in rows], None))
    for name, order in ((IN_FILE_ORDER, file_order(len(rows))), (BY_LENGTH, by_length)):
        workloads.append(Workload(name, [_padded([rows[i] for i in batch], tokenizer) for batch in order], len(rows)))
    chosen = range(0, len(rows), -(-len(rows) // _CALIBRATION[0]))
    return Setting(
        threads,
        tuple(_whole(torch.tensor([rows[i]])) for i in chosen),
        tuple((texts or ())[i] for i in chosen),
        varied=True,
    ), workloads


def write_inputs(file: Path, setting: Setting, workloads: Sequence[Workload]) -> None:
    """Write what the peers' processes are given, as JSON."""
    given = {
        **dataclasses.asdict(setting),
        "calibration": [_lists(batch) for batch in setting.calibration],
        "workloads": [
            {"name": each.name, "texts": each.texts, "batches": [_lists(batch) for batch in each.batches]}
            for each in workloads
        ],
    }
    file.write_text(json.dumps(given), encoding="utf-8")


def read_inputs(file: Path) -> tuple[Setting, list[Workload]]:
    """Read what :func:`write_inputs` wrote."""
    given = json.loads(file.read_text(encoding="utf-8"))
    workloads = [
        Workload(each["name"], [_tensors(batch) for batch in each["batches"]], each["texts"])
        for each in given.pop("workloads")
    ]
    given["calibration"] = tuple(_tensors(batch) for batch in given["calibration"])
    given["texts"] = None if given["texts"] is None else tuple(given["texts"])
    return Setting(**given), workloads


def _lists(batch: Batch) -> dict[str, list[list[int]]]:
    return {name: value.tolist() for name, value in batch.items()}


def _tensors(batch: dict[str, list[list[int]]]) -> Batch:
    return {name: torch.tensor(value) for name, value in batch.items()}


def file_order(rows: int) -> list[list[int]]:
    """Indices in batches of 32, as they come."""
    return [list(range(start, min(start + _ROWS, rows))) for start in range(0, rows, _ROWS)]


def read_texts(file: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank; none, or no such file, raises :class:`BenchError`."""
    if not file.is_file():
        raise BenchError(f"{file}: no such file; give UTF-8 text, one text a line")
    texts = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not texts:
        raise BenchError(f"{file}: no text in it; give one text a line")
    return texts


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    if tokenizer is None:
        raise BenchError("texts need a tokenizer, and the model's folder has none; copy its files there")
    longest = min(_LONGEST, tokenizer.model_max_length)
    return list(tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"])


def _whole(ids: torch.Tensor) -> Batch:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _padded(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase | None) -> Batch:
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}
