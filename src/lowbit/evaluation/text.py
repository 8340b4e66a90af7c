"""Evaluation of a stored language model on plain text."""

from __future__ import annotations

from pathlib import Path

from lowbit.adapter import adapter_folder, load, task_fields
from lowbit.checkpoint import checkpoint_folder, load_tokenizer
from lowbit.loop import Progress
from lowbit.scoring import TextScore, score_text


def perplexity(
    model: str | Path,
    text: str | Path,
    *,
    adapter: str | Path | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TextScore:
    """Perplexity of a language model (with an adapter, if given) on a UTF-8 text file, read in pieces.

    A sliding window shows the model at most ``window`` tokens at once, special ones included: by default as many as it
    was tuned with, else as it has positions, at most 1,024, and 512 where its configuration names no length. The window
    moves on by ``stride`` tokens, by default half of it, and every token of the text is scored once:

    - causal models predict each of the ``stride`` new tokens from all those before it in the window; the first token
      of the text follows the one that the tokenizer puts before a text (else its start or end token). ``stride`` =
      ``window`` cuts the text into chunks.
    - masked models give a pseudo-perplexity (Salazar et al. 2020, arXiv 1910.14659): each token in the middle of the
      window is masked in turn and predicted from both sides. That is one row a token: ``sample`` scores only so many,
      drawn with ``seed``.
    - sequence-to-sequence models read the window's first part in the encoder and predict the ``stride`` tokens after
      it in the decoder, each from those before it. Unlike T5's sentinels, which hide a random few tokens, this is a
      probability of the whole text; a T5 that was never trained to continue text has a high one, and what compares
      is the same model float and quantized.

    Computed in float32, or under bf16 autocast where the processor has it. Raises :class:`UnsupportedModelError` for a
    model without a language-model head, :class:`SchemeError` for a window or stride that does not fit and
    :class:`DataError` for a file without text.
    """
    folder = checkpoint_folder(model)
    adapter = None if adapter is None else adapter_folder(adapter)
    loaded = load(folder, adapter)
    if window is None:
        window = task_fields(loaded, adapter).get("max_length")
    return score_text(
        loaded,
        load_tokenizer(folder),
        text,
        window=window,
        stride=stride,
        batch_size=batch_size,
        sample=sample,
        seed=seed,
        progress=progress,
    )
