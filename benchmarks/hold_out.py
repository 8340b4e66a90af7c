"""Training rows held out for trials, so that none of them is close to a row that is trained on."""

import numpy as np

from lowbit.data import Examples

MIN_WORDS = 12  # shorter rows are phrases, of which dev has none


def hold_out_sentences(rows: Examples, part: float, seed: int) -> tuple[Examples, Examples]:
    """Rows to train on, and a ``part`` of all rows, long ones, that are held out.

    The training rows of SST-2 are phrases of shared sentences. Rows that are part of a held-out one, or that one is a
    part of, are in neither set: a model that has seen them knows the answer.
    """
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    words = [f" {text.strip()} " for text in rows.texts]
    held = [row for row in order if len(words[row].split()) >= MIN_WORDS][: round(part * len(rows))]
    inside = "\n".join(words[row] for row in held)
    left = set(order) - set(held)
    kept = [
        row
        for row in order
        if row in left and words[row] not in inside and not any(words[one] in words[row] for one in held)
    ]
    return rows.select(kept), rows.select(held)
