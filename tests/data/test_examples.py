import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.data import Examples
from lowbit.errors import DataError


def numbered(n):
    """Rows whose three columns all tell the row's number."""
    return Examples([f"t{i}" for i in range(n)], [f"p{i}" for i in range(n)], list(range(n)), ("x",) * n, "here")


def assert_rows_intact(examples):
    assert examples.texts == [f"t{i}" for i in examples.labels]
    assert examples.pairs == [f"p{i}" for i in examples.labels]


@given(st.lists(st.integers(0, 19)))
def test_select_takes_the_rows_in_order(indices):
    selected = numbered(20).select(indices)
    assert selected.labels == indices
    assert_rows_intact(selected)
    assert (selected.label_names, selected.source) == (("x",) * 20, "here")


def test_select_keeps_absent_columns_absent():
    selected = Examples(["a", "b"], None, None, None, "here").select([1])
    assert selected == Examples(["b"], None, None, None, "here")


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 99))
def test_split_is_a_partition(n, held_out, seed):
    size = round(held_out * n)
    if not 0 < size < n:
        with pytest.raises(DataError, match="leaves one side empty"):
            numbered(n).split(held_out, seed)
        return
    kept, held = numbered(n).split(held_out, seed)
    assert len(held) == size
    assert sorted(kept.labels + held.labels) == list(range(n))
    assert_rows_intact(kept)
    assert_rows_intact(held)
    assert numbered(n).split(held_out, seed) == (kept, held)


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 99))
def test_sample_is_the_start_of_a_seeded_permutation(n, wanted, seed):
    sampled = numbered(n).sample(wanted, seed)
    assert sampled.labels == np.random.default_rng(seed).permutation(n)[:wanted].tolist()
    assert_rows_intact(sampled)


def test_sample_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].tolist()
    numbered(9).sample(3)
    assert np.random.get_state()[1].tolist() == before


def test_sample_of_nothing_is_refused():
    with pytest.raises(DataError, match="here: cannot sample 0 rows"):
        numbered(3).sample(0)


@pytest.mark.parametrize(("pairs", "labels"), [(["p"], [0, 1]), (["p", "q"], [0])])
def test_columns_of_different_lengths_are_refused(pairs, labels):
    with pytest.raises(DataError, match="for 2 texts"):
        Examples(["a", "b"], pairs, labels, ("x", "y"), "here")
