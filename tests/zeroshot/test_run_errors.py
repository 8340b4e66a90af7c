"""What ``lowbit.zeroshot`` refuses: one clear error each, and nothing is written."""

import pytest

import lowbit
from lowbit.errors import (
    AdapterError,
    CheckpointError,
    DataError,
    OutputExistsError,
    SchemeError,
    UnsupportedModelError,
)
from tests.zeroshot.runs import TEXTS, zeroshot

CLASSIFIER = ("bert", "BertForSequenceClassification")


def no_shared_piece(tiny, tmp_path):
    """A language model whose vocabulary has no word of the target's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "other"
    lowbit.load(tiny.model("opt")).save_pretrained(folder)
    words = {f"xyz{index}": index for index in range(64)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="xyz0")))
    tokenizer.pad_token = tokenizer.unk_token = "xyz0"
    tokenizer.save_pretrained(folder)
    return {"generator": folder}


BAD = {
    "generator of other words": (no_shared_piece, UnsupportedModelError, "share no piece"),
    "generator that predicts nothing": (
        lambda tiny, _: {"generator": tiny.model("t5", "T5Model")},
        UnsupportedModelError,
        "no causal language model",
    ),
    "no such generator": (lambda *_: {"generator": "./nowhere"}, CheckpointError, "nowhere is not a model folder"),
    "generator for nothing": (
        lambda tiny, _: {"generator": tiny.model("opt"), "method": "random"},
        SchemeError,
        "the method 'random' has no use for --generator; leave it out",
    ),
    "no text writer": (lambda *_: {"method": "sampled"}, SchemeError, "BertForSequenceClassification writes no text"),
    "unknown method": (lambda *_: {"method": "zsqa"}, SchemeError, "unknown method 'zsqa'; use one of zsaq"),
    "no texts": (lambda *_: {"method": "real"}, DataError, "`real` needs texts"),
    "texts for nothing": (lambda *_: {"texts": TEXTS}, DataError, "no other method takes any"),
    "blank texts": (lambda *_: {"method": "real", "texts": ["", " "]}, DataError, "no texts"),
    "mixed texts": (lambda *_: {"method": "real", "texts": ["a", ("a", "b")]}, DataError, "give one kind"),
    "grid that cannot be trained": (
        lambda *_: {"recipe": {"scheme": {"bits": 2, "strategy": "kmeans"}}},
        SchemeError,
        "only symmetric grids",
    ),
    "lengths beyond the model": (lambda *_: {"lengths": (40, 50)}, SchemeError, "rows have room for 20"),
    "too many candidates": (lambda *_: {"candidates": 50}, SchemeError, "50 candidates of 14 rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_error_and_nothing_is_written(tiny, tmp_path, name):
    make, error, message = BAD[name]
    changes = make(tiny, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=message):
        zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", **changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_output_that_exists_and_a_quantized_model_are_refused(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="exists already"):
        zeroshot("./nowhere", tmp_path / "out")
    with pytest.raises(AdapterError, match="is quantized already; give the float model"):
        zeroshot(tiny.backbone("bert"), tmp_path / "other")


def test_a_shared_embedding_module_cannot_be_replaced(tiny, tmp_path, monkeypatch):
    from transformers import T5ForConditionalGeneration

    monkeypatch.setattr(T5ForConditionalGeneration, "get_decoder", lambda self: self.get_encoder(), raising=True)
    with pytest.raises(UnsupportedModelError, match="share one embedding module"):
        zeroshot(tiny.model("t5"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
