"""The compiled form on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from lowbit.checkpoint import atomic_directory, copy_side_files, read_config
from lowbit.errors import CheckpointError, UnsupportedModelError
from lowbit.kernels import saturates
from lowbit.runtime.openvino.model import OpenVinoModel, Signature, core, wrap

INFO_FILE = "openvino.json"
_GRAPH, _WEIGHTS = "openvino_model.xml", "openvino_model.bin"
_VERSION = 1


def save_openvino(model: PreTrainedModel, output: str | Path) -> Path:
    """Write a model from ``prepare_openvino`` as a new directory: graph, weights, configuration, tokenizer.

    Another model raises UnsupportedModelError, an existing output OutputExistsError.
    """
    if not isinstance(model, OpenVinoModel):
        raise UnsupportedModelError("only what `prepare_openvino` gives can be saved so; prepare the model first")
    import openvino

    with atomic_directory(output) as partial:
        openvino.save_model(model.graph, partial / _GRAPH, compress_to_fp16=False)
        model.config.save_pretrained(partial)
        source = model.config.name_or_path
        if source and Path(source).is_dir():
            copy_side_files(Path(source), partial)
        sums = {name: _checksum(partial / name) for name in (_GRAPH, _WEIGHTS)}
        info = {
            "version": _VERSION,
            "openvino": openvino.__version__,
            "signature": asdict(model.signature),
            "sha256": sums,
        }
        (partial / INFO_FILE).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return Path(output)


def load_openvino(folder: str | Path) -> PreTrainedModel:
    """A model as ``save_openvino`` wrote it, compiled for this machine.

    Damaged or altered files raise CheckpointError; so does a model that was prepared for instructions which this
    machine lacks.
    """
    folder = Path(folder)
    info = _read_info(folder)
    for name, expected in info["sha256"].items():
        if not (folder / name).is_file() or _checksum(folder / name) != expected:
            raise CheckpointError(f"{folder / name} is missing or differs from its checksum; prepare the model again")
    values = info["signature"]
    signature = Signature(**{**values, "inputs": tuple(values["inputs"]), "outputs": tuple(values["outputs"])})
    if saturates() and not signature.spares:
        raise CheckpointError(
            f"{folder} was prepared on a machine with VNNI instructions, without which its products would overflow; "
            "prepare the model on this machine"
        )
    model_class = getattr(transformers, signature.model_class)
    graph = core().read_model(folder / _GRAPH)
    loaded: PreTrainedModel = wrap(model_class, read_config(folder), graph, signature)
    loaded.config.name_or_path = loaded.name_or_path = str(folder)
    return loaded


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no compiled model: {INFO_FILE} is missing")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, sums, signature = info["version"], info["sha256"], info["signature"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}; prepare the model again") from error
    if version != _VERSION:
        raise CheckpointError(f"{path} has format version {version!r}, this lowbit reads {_VERSION}; prepare again")
    if set(sums) != {_GRAPH, _WEIGHTS} or set(signature) != set(Signature.__dataclass_fields__):
        raise CheckpointError(f"{path} is damaged: it names other files or fields; prepare the model again")
    found: dict[str, Any] = info
    return found


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
