"""Which rows a trial on SST-2 trains on and which it is scored on."""

import hold_out
import pytest

from lowbit.data import Examples


def examples(*texts):
    return Examples(list(texts), None, list(range(len(texts))), None, "toy")


LONG = [" ".join(f"w{row}x{word}" for word in range(14)) for row in range(10)]


def test_long_rows_are_held_out_and_nothing_near_them_is_kept():
    phrases = [" ".join(text.split()[2:5]) for text in LONG]
    wider = [f"oh {text} indeed" for text in LONG]
    rows = examples(*LONG, *phrases, *wider, "short row", "w0x2")
    kept, held = hold_out.hold_out_sentences(rows, 0.1, seed=0)
    assert len(held) == round(0.1 * len(rows))
    for text in held.texts:
        assert len(text.split()) >= hold_out.MIN_WORDS
        assert not any(one in f" {text} " or f" {text} " in one for one in (f" {row} " for row in kept.texts))
    assert "short row" in kept.texts
    assert {rows.texts[label] for label in kept.labels} == set(kept.texts)  # labels stay with their rows


def test_part_of_a_word_does_not_count():
    rows = examples(*[f"{text} end" for text in LONG], "x13 end", "nd")
    kept, _ = hold_out.hold_out_sentences(rows, 0.8, seed=0)
    assert {"x13 end", "nd"} <= set(kept.texts)


@pytest.mark.parametrize("seed", [1, 2])
def test_depends_on_the_seed_only(seed):
    rows = examples(*LONG)
    first, again, other = (hold_out.hold_out_sentences(rows, 0.3, seed=s)[1].texts for s in (seed, seed, seed + 7))
    assert first == again != other
