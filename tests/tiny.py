"""Tiny directories that tests share, and the toy task that they are tuned for."""

import random

import numpy as np
import torch

import lowbit
from lowbit.data import Examples, TaskData
from lowbit.tuning import METHODS
from tests.models import WORDS, save_tiny, tiny_tokenizer

RECIPE = "w4o2"
# The class that each architecture's backbone is made of.
BACKBONES = {
    "bert": "BertModel",
    "roberta": "RobertaForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "opt": "OPTForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
# Further ones, whose special needs have tests; the last three have no row in the table.
OTHER_BACKBONES = {
    "distilbert": "DistilBertForMaskedLM",
    "electra": "ElectraModel",
    "albert": "AlbertModel",
    "deberta-v2": "DebertaV2ForMaskedLM",
    "mpnet": "MPNetForMaskedLM",
    "xlm-roberta": "XLMRobertaModel",
    "bart": "BartForConditionalGeneration",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3Model",
    "gpt_neo": "GPTNeoForCausalLM",
    "xlnet": "XLNetLMHeadModel",
    "deberta": "DebertaModel",
}
# Like the real ones, these tiny models name no padding token.
_UNPADDED = {"gpt2", "gpt_neo", "llama", "mistral", "qwen2", "qwen3"}


def options(**changes):
    """Three short steps in float32, with changes."""
    short = {"epochs": 1, "batch_size": 8, "max_length": 16, "precision": "fp32"}
    return lowbit.TuneOptions(**(short | changes))


class Tiny:
    """Makes each directory on first use and keeps it for the session."""

    def __init__(self, root):
        self._root = root
        self._made = {}

    def model(self, arch, class_name=None, dtype=torch.float32, seed=0):
        """A float model with its tokenizer."""
        class_name = class_name or (BACKBONES | OTHER_BACKBONES)[arch]

        def make(folder):
            changes = {"pad_token_id": None} if arch in _UNPADDED else {}
            save_tiny(folder, arch, class_name, seed=seed, dtype=dtype, **changes)
            tiny_tokenizer(arch).save_pretrained(folder)

        return self._folder(("model", arch, class_name, dtype, seed), make)

    def backbone(self, arch, class_name=None, recipe=RECIPE, dtype=torch.float32, seed=0):
        """A backbone quantized from :meth:`model`."""
        source = self.model(arch, class_name, dtype, seed)
        return self._folder(
            ("backbone", source.name, str(recipe)), lambda folder: lowbit.quantize(source, recipe, output=folder)
        )

    def adapter(self, arch, class_name=None, dtype=torch.float32, **changes):
        """An adapter tuned for the toy task on :meth:`backbone`."""
        backbone = self.backbone(arch, class_name, dtype=dtype)
        chosen = options(**changes)
        return self._folder(
            ("adapter", backbone.name, repr(chosen)),
            lambda folder: lowbit.tune(backbone, folder, toy_data(), options=chosen),
        )

    def merged(self, arch):
        """:meth:`backbone` and :meth:`adapter` as one directory."""
        return self._folder(
            ("merged", arch), lambda folder: lowbit.merge(self.backbone(arch), self.adapter(arch), folder)
        )

    def start(self, method, arch="bert", dtype=torch.float32):
        """What a method starts from, and the options that it cannot do without."""
        model = self.model(arch, dtype=dtype)
        needed = {"float_model": model} if method == "loftq" else {}
        return (self.backbone(arch, dtype=dtype) if METHODS[method].from_backbone else model), needed

    def _folder(self, key, make):
        if key not in self._made:
            folder = self._root / f"{key[0]}-{len(self._made)}"
            make(folder)
            self._made[key] = folder
        return self._made[key]


def toy_rows(labels=("no", "yes"), rows=24, seed=0, pairs=False):
    """Rows of unequal length whose first word tells the class; floats from 0 to 1 where ``labels`` is None."""
    draw = random.Random(seed)
    classes = [index % len(labels or WORDS[:6]) for index in range(rows)]
    texts = [" ".join([WORDS[index], *draw.choices(WORDS[6:], k=draw.randrange(1, 8))]) for index in classes]
    return Examples(
        texts=texts,
        pairs=[" ".join(draw.choices(WORDS, k=draw.randrange(1, 4))) for _ in texts] if pairs else None,
        labels=classes if labels else [index / 5 for index in classes],
        label_names=labels,
        source="toy",
    )


def toy_data(labels=("no", "yes"), seed=0, pairs=False):
    """A task with training rows and an evaluation set ``dev``."""
    metrics = ("accuracy",) if labels else ("pearson", "spearman")
    train, dev = toy_rows(labels, seed=seed, pairs=pairs), toy_rows(labels, 12, seed + 1, pairs)
    return TaskData("toy", metrics, metrics[-1], labels, train, {"dev": dev})


def random_states():
    """The states of torch, numpy and ``random``, comparable with ``==``."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()


def texts_of(data):
    """The texts of the evaluation set as ``predict`` takes them."""
    dev = data.evaluations["dev"]
    return dev.texts if dev.pairs is None else list(zip(dev.texts, dev.pairs, strict=True))
