import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from lowbit.checkpoint import load_tokenizer
from lowbit.errors import CheckpointError
from tests.tiny import BACKBONES


@pytest.mark.parametrize("arch", BACKBONES)
def test_load_tokenizer_can_pad(tiny, arch):
    tokenizer = load_tokenizer(tiny.model(arch))
    assert tokenizer.pad_token == {"bert": "[PAD]", "gpt2": "</s>"}.get(arch, "<pad>")
    rows = tokenizer(["good", "good film"], padding=True)["input_ids"]
    assert len(rows[0]) == len(rows[1])


def test_load_tokenizer_refuses_a_folder_without_one(tmp_path, tiny):
    (tmp_path / "config.json").write_bytes((tiny.model("bert") / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"has no tokenizer, none of tokenizer.json, vocab.txt; save it"):
        load_tokenizer(tmp_path)


def test_load_tokenizer_refuses_what_cannot_pad(tmp_path):
    words = Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither a padding nor an end token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_load_tokenizer_refuses_a_damaged_one(tmp_path, tiny, name, text):
    for path in tiny.model("bert").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="has no usable tokenizer"):
        load_tokenizer(tmp_path)
