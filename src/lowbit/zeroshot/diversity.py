"""How varied a generated batch is."""

from __future__ import annotations

import torch

from lowbit.zeroshot.embedding import Mixture


def row_entropy(mixture: Mixture) -> torch.Tensor:
    """Entropy in nats of how much each row of the table counts in a batch, a float32 scalar.

    0 where one row is all there is, the logarithm of the number of tokens where no row comes twice. It is a term
    against collapse: a generator that is only rewarded for what two models disagree on soon repeats the one token where
    they do so most. Gradients reach ``weights``, also those of rows that a hard choice leaves out.
    """
    weights = mixture.weights[mixture.present].float()
    rows, places = mixture.ids[mixture.present].unique(return_inverse=True)
    counts = weights.new_zeros(rows.numel()).index_add(0, places.flatten(), weights.flatten())
    shares = counts / len(weights)
    rarest = 0.5 / len(weights)  # a row without a share yet: its logarithm must be finite
    return -(shares * shares.clamp_min(rarest).log()).sum()
