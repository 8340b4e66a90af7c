"""Where generated batches begin: networks that turn noise into states."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.adapter import load_causal_lm
from lowbit.arch import position_limit
from lowbit.checkpoint import checkpoint_folder, load_tokenizer
from lowbit.errors import DataError, UnsupportedModelError
from lowbit.loop import isolated_rng
from lowbit.zeroshot.pieces import ordinary_ids


class StateGenerator(Protocol):
    """A module whose parameters can be trained by the gradient of its states."""

    width: int

    def states(self, rows: int, length: int, rng: torch.Generator) -> torch.Tensor:
        """States [rows, length, width] on the module's device, of noise drawn from ``rng`` alone."""
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

    def states(self, rows: int, length: int, rng: torch.Generator) -> torch.Tensor:
        """States float [rows, length, width]; each position starts from Gaussian noise of its own."""
        noise = torch.randn(rows, length, self.width, generator=rng, device=rng.device)
        return self.encoder(noise.to(next(self.parameters())))


class LanguageModelGenerator(nn.Module):
    """A causal language model that reads random tokens of its vocabulary; its last hidden states are the states.

    They say what may come next: ``states @ output_table.T`` are the model's logits. The model is put in eval mode and
    into float32. One whose hidden states are not as wide as its output table raises :class:`UnsupportedModelError`.
    """

    output_table: torch.Tensor
    _ids: torch.Tensor

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model, self.tokenizer = model.base_model.eval().float().requires_grad_(True), tokenizer
        output = model.get_output_embeddings()
        if output is None or model.base_model is model:
            raise UnsupportedModelError(f"{type(model).__name__} predicts no tokens; give a causal language model")
        self.register_buffer("output_table", output.weight.detach().float(), persistent=False)
        self.width = self.output_table.shape[1]
        self._limit = position_limit(model)
        self.register_buffer("_ids", ordinary_ids(tokenizer), persistent=False)

    @classmethod
    def load(cls, source: str | Path) -> LanguageModelGenerator:
        """The generator of a folder or hub id.

        What cannot be read raises CheckpointError, a model of another kind :class:`UnsupportedModelError`.
        """
        folder = checkpoint_folder(source)
        return cls(load_causal_lm(folder, dtype=torch.float32), load_tokenizer(folder))

    def states(self, rows: int, length: int, rng: torch.Generator) -> torch.Tensor:
        """States float [rows, length, width]; longer rows than the model has positions for raise DataError."""
        if self._limit is not None and length > self._limit:
            raise DataError(f"the generator has {self._limit} positions, {length} are asked for; use shorter lengths")
        drawn = torch.randint(self._ids.numel(), (rows, length), generator=rng, device=rng.device)
        return self.model(input_ids=self._ids[drawn.to(self._ids.device)], use_cache=False).last_hidden_state
