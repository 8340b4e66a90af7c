from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lowbit.data import Examples, encode
from lowbit.errors import DataError

EXAMPLES = Examples(["a b c", "c"], None, [1, 0], ("no", "yes"), "here")


@pytest.fixture(scope="module")
def tokenizer():
    """Words a, b, c are 1, 2, 3; the first text ends with 9, the pair (type 1) too. It has no pad token."""
    backend = Tokenizer(WordLevel({"?": 0, "a": 1, "b": 2, "c": 3, "|": 9}, unk_token="?"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing("$A |", "$A | $B:1 |:1", [("|", 9)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids"])


def test_single_texts_stay_unpadded(tokenizer):
    assert encode(EXAMPLES, tokenizer) == [
        {"input_ids": [1, 2, 3, 9], "token_type_ids": [0, 0, 0, 0], "labels": 1},
        {"input_ids": [3, 9], "token_type_ids": [0, 0], "labels": 0},
    ]


def test_pairs_and_scores(tokenizer):
    rows = encode(replace(EXAMPLES, pairs=["b", "a"], labels=[0.5, 4.0], label_names=None), tokenizer)
    assert rows[0] == {"input_ids": [1, 2, 3, 9, 2, 9], "token_type_ids": [0, 0, 0, 0, 1, 1], "labels": 0.5}
    assert [row["labels"] for row in rows] == [0.5, 4.0]


def test_truncates(tokenizer):
    assert [row["input_ids"] for row in encode(EXAMPLES, tokenizer, max_length=3)] == [[1, 2, 9], [3, 9]]


def test_no_labels_no_key(tokenizer):
    assert all("labels" not in row for row in encode(replace(EXAMPLES, labels=None), tokenizer))


def test_no_rows(tokenizer):
    with pytest.raises(DataError, match="here: no rows to encode"):
        encode(EXAMPLES.select([]), tokenizer)
