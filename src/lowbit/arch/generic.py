"""The rule for model types without a row in the table: what is repeated is a block."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache

from torch import nn
from transformers import PreTrainedModel


class GenericArchitecture:
    """Answers what :class:`~lowbit.arch.table.Architecture` answers, from the model itself.

    Blocks are the members of every ``nn.ModuleList`` inside the base model, the word embedding is what
    ``get_input_embeddings()`` gives. A class without a base model of its own, as MT5ForConditionalGeneration, is
    its own base; there the linears on its first level are heads.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        base = getattr(model, model.base_model_prefix, model)
        self._model, self._base = model, base
        self._roots = {
            name for name, child in base.named_children() if base is not model or not isinstance(child, nn.Linear)
        }

    def is_base(self, name: str) -> bool:
        """Whether a module belongs to the base model."""
        return name == "" or name.split(".", 1)[0] in self._roots

    def is_pooler(self, name: str) -> bool:
        """Whether a module of the base model is a pooler."""
        return re.fullmatch(r"(.*\.)?pooler(\..*)?", name) is not None

    def is_word_embedding(self, name: str) -> bool:
        """Whether an embedding of the base model holds words."""
        module = self._base.get_submodule(name)
        try:
            words = self._model.get_input_embeddings()
        except NotImplementedError:  # a model that reads no words
            return False
        used_by = {path for path, found in self._model.named_modules(remove_duplicate=False) if found is words}
        ties = self._model.all_tied_weights_keys
        sources = [ties[f"{path}.weight"] for path in used_by if f"{path}.weight" in ties]  # Marian gives the encoder's
        return module is words or any(self._model.get_submodule(s.rpartition(".")[0]) is module for s in sources)

    def float_reason(self, name: str) -> str:
        """Why a linear of the base model stays in float; empty for one that is quantized."""
        parts = name.split(".")
        above = [self._base.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]
        if not any(isinstance(module, nn.ModuleList) for module in above):
            return "linear outside the repeated blocks"
        if parts[-1] in _weights_read(type(above[-1])):
            return f"{type(above[-1]).__name__} reads its weight directly"
        return ""


def _weights_read(kind: type[nn.Module]) -> frozenset[str]:
    """Members whose ``weight`` the code of a module class reads for more than its dtype, device or shape.

    A quantized module computes when it is called; whoever takes its weight instead gets a float32 copy.
    """
    return frozenset(name for parent in kind.__mro__ for name in _read_in_class(parent))


@cache
def _read_in_class(kind: type) -> frozenset[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):  # a class without source text
        return frozenset()
    harmless = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("dtype", "device", "shape"):
            harmless.add(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            harmless.add(node.args[0])
    return frozenset(
        node.value.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "weight" and node not in harmless
        if isinstance(node.value, ast.Attribute)
        if isinstance(node.value.value, ast.Name) and node.value.value.id == "self"
    )
