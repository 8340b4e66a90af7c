"""A random checkpoint of BERT-base geometry, for measurements where values do not matter."""

from pathlib import Path

from transformers import BertConfig, BertModel

from lowbit.checkpoint import copy_side_files
from lowbit.demo import minilm_folder
from lowbit.loop import isolated_rng


def bert_base(folder: Path) -> Path:
    """Save BertModel in its default geometry (110 M parameters, fp32) and return its folder.

    MiniLM's tokenizer, which has the same vocabulary, stands beside it for what has to run the model.
    """
    with isolated_rng(0):
        BertModel(BertConfig()).save_pretrained(folder)
    copy_side_files(minilm_folder(), folder)
    return folder
