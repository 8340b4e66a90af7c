"""Writing a backbone directory; the streaming and the in-memory path both end here."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PretrainedConfig

from lowbit.checkpoint.card import CARD_FILE, backbone_card
from lowbit.checkpoint.directory import WEIGHTS_FILE, copy_side_files
from lowbit.checkpoint.tensorfile import Entries, TensorWriter
from lowbit.plan import Plan, quantization_config


def write_weights(partial: Path, entries: Entries, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write the weights file of a directory.

    ``entries`` describes every tensor in advance; ``tensors`` yields them in any order, once each.
    """
    with TensorWriter(partial / WEIGHTS_FILE, entries) as writer:
        for name, tensor in tensors:
            writer.write(name, tensor)


def write_description(partial: Path, plan: Plan, config: PretrainedConfig, source: Path | None) -> None:
    """Fill a directory that has its weights with side files, card, plan and, last, ``config.json``."""
    if source is not None:
        copy_side_files(source, partial)
    (partial / "plan.json").write_text(json.dumps(plan.to_dict(), indent=1) + "\n", encoding="utf-8")
    config = copy.deepcopy(config)
    config.architectures = [plan.model_class]
    config.quantization_config = quantization_config(plan)
    (partial / "config.json").write_text(config.to_json_string(use_diff=True), encoding="utf-8")
    (partial / CARD_FILE).write_text(backbone_card(partial, source), encoding="utf-8")
