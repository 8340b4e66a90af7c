"""The honest size of a backbone: read from the file, not from the plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lowbit.checkpoint.directory import weight_files
from lowbit.checkpoint.tensorfile import read_manifest
from lowbit.checkpoint.verify import read_quantization_config, stored_modules
from lowbit.plan import module_specs


@dataclass(frozen=True)
class Size:
    """``effective_bits``: bits of all tensors of the block linears, biases excluded, over their weights.

    ``embedding_bits``: the same for the word embeddings (0 when they are float). ``model_bits``: bits of the whole
    file (or its shards) over all ``parameters`` of the model. ``file_bytes``: the file.
    """

    effective_bits: float
    embedding_bits: float
    model_bits: float
    file_bytes: int
    parameters: int


def measure(directory: str | Path) -> Size:
    """Measure a backbone directory; anything else raises CheckpointError."""
    path = Path(directory)
    specs = module_specs(read_quantization_config(path))
    files = weight_files(path)
    entries = read_manifest(*files)
    stored = stored_modules(entries, specs, path)
    payload = dict.fromkeys(specs, 0)
    parameters = sum(spec.shape[0] * spec.shape[1] for spec in specs.values())
    owner = {f"{module}.": name for name, module in stored.items()}
    for key, entry in entries.items():
        module = key.rpartition(".")[0] + "."
        if module in owner and not key.endswith(".bias"):
            payload[owner[module]] += entry.nbytes
        else:
            parameters += math.prod(entry.shape)

    def bits(names: list[str]) -> float:
        weights = sum(specs[name].shape[0] * specs[name].shape[1] for name in names)
        return 8 * sum(payload[name] for name in names) / weights if weights else 0.0

    embeddings = [name for name, spec in specs.items() if spec.kind == "embedding"]
    linears = [name for name in specs if name not in embeddings]
    size = sum(file.stat().st_size for file in files)
    return Size(bits(linears), bits(embeddings), 8 * size / parameters, size, parameters)
