"""Where generated batches begin: networks that turn noise into states."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.adapter import load_causal_lm
from lowbit.checkpoint import checkpoint_folder, load_tokenizer
from lowbit.errors import DataError, UnsupportedModelError
from lowbit.loop import isolated_rng
from lowbit.zeroshot.spelling import Spelling
from lowbit.zeroshot.writing import Writer

_LONGER = 1.25  # times as many tokens are written as a reader is to have, whose tokens may be longer


@dataclass(frozen=True, eq=False)
class States:
    """``values`` float [rows, length, width]; ``tokens`` int64 [rows, length]: what they led to, -1 for nothing."""

    values: torch.Tensor
    tokens: torch.Tensor | None = None


class StateGenerator(Protocol):
    """A module whose parameters can be trained by the gradient of its states."""

    width: int

    def states(self, rows: int, length: int, rng: torch.Generator, project: nn.Module) -> States:
        """States on the module's device, drawn from ``rng`` alone; ``project`` is what will read them first."""
        ...


class TransformerGenerator(nn.Module):
    """A small transformer encoder over Gaussian noise, for when there is no language model.

    Its initial values follow from ``seed`` alone. A state's length is about the root of its width.
    """

    def __init__(self, width: int = 256, layers: int = 2, heads: int = 4, *, seed: int = 0) -> None:
        super().__init__()
        self.width = width
        with isolated_rng(seed):
            layer = nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
            for parameter in self.encoder.parameters():  # the layers start as copies of one
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def states(self, rows: int, length: int, rng: torch.Generator, project: nn.Module) -> States:
        """States that led to no tokens; each position starts from Gaussian noise of its own."""
        noise = torch.randn(rows, length, self.width, generator=rng, device=rng.device)
        return States(self.encoder(noise.to(next(self.parameters()))))


class LanguageModelGenerator(nn.Module):
    """A causal language model that writes; its states are the last hidden ones that led to each token of a text.

    ``states @ output_table.T`` are the model's logits. It writes as :class:`lowbit.zeroshot.writing.Writer` says, by
    ``project(states) @ output_table.T``, so that a projection that is trained changes what is written. With ``reader``,
    the tokenizer of the model that is to read the text, that one's tokens are told, each with the state that led to
    the place where it begins. The model is put in eval mode and into float32. One whose hidden states are not as
    wide as its output table raises :class:`UnsupportedModelError`.
    """

    output_table: torch.Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reader: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model.base_model.eval().float().requires_grad_(True), tokenizer
        output = model.get_output_embeddings()
        if output is None or model.base_model is model:
            raise UnsupportedModelError(f"{type(model).__name__} predicts no tokens; give a causal language model")
        self.register_buffer("output_table", output.weight.detach().float(), persistent=False)
        self.width = self.output_table.shape[1]
        self._writer = Writer(self.model, tokenizer)
        self.reader = tokenizer if reader is None else reader
        is_other = self.reader.get_vocab() != tokenizer.get_vocab()
        self._spelling = Spelling(tokenizer, self.reader) if is_other else None

    @classmethod
    def load(cls, source: str | Path, reader: PreTrainedTokenizerBase | None = None) -> LanguageModelGenerator:
        """The generator of a folder or hub id.

        What cannot be read raises CheckpointError, a model of another kind :class:`UnsupportedModelError`.
        """
        folder = checkpoint_folder(source)
        return cls(load_causal_lm(folder, dtype=torch.float32), load_tokenizer(folder), reader)

    def states(self, rows: int, length: int, rng: torch.Generator, project: nn.Module) -> States:
        """States and the tokens they led to; the first token that was written led to none and is left out.

        A reader's tokens behind the end of what was written are -1. Longer rows than the model has positions for raise
        :class:`DataError`.
        """
        room = self._writer.room
        if room is not None and length > room:
            raise DataError(f"the generator has {room} positions, {length} are asked for; use shorter lengths")
        table = self.output_table.t()
        asked = length if self._spelling is None else min(math.ceil(_LONGER * length), room or sys.maxsize)
        written = self._writer.write(rows, asked + 1, rng, lambda output: project(output.last_hidden_state) @ table)
        start = self._writer.start
        read = torch.cat([start.expand(rows, -1), written[:, :-1]], dim=1).to(self.model.device)
        states = self.model(input_ids=read, use_cache=False).last_hidden_state[:, len(start) :]
        if self._spelling is None:
            return States(states, written[:, 1:].to(states.device))
        tokens, places = (tensor.to(states.device) for tensor in self._spelling(written, length))
        led = (places - 1)[..., None].expand(-1, -1, states.shape[-1])
        return States(states.gather(1, led), tokens)
