import re
from collections import Counter

import pytest

from lowbit.data import load_intents
from lowbit.errors import DataError


def normalised(text):
    return " ".join(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize(("split", "rows"), [("train", 45), ("test", 15)])
def test_balanced(split, rows):
    examples = load_intents(split)
    assert len(examples.label_names) == 12
    assert Counter(examples.labels) == dict.fromkeys(range(12), rows)
    assert examples.source == f"intents/{split}"


def test_splits_name_the_same_intents():
    assert load_intents("train").label_names == load_intents("test").label_names


def test_no_text_twice():
    texts = [normalised(text) for split in ("train", "test") for text in load_intents(split).texts]
    assert len(set(texts)) == len(texts) == 720
    assert all(text == text.strip() for split in ("train", "test") for text in load_intents(split).texts)


def test_no_test_text_is_a_train_text_with_a_word_changed():
    train = [set(normalised(text).split()) for text in load_intents("train").texts]
    for text in load_intents("test").texts:
        words = set(normalised(text).split())
        assert max(len(words & other) / len(words | other) for other in train) < 0.5, text


def test_unknown_split():
    with pytest.raises(DataError, match="use train or test"):
        load_intents("dev")
