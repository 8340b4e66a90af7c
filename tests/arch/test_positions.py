import pytest
import torch

from lowbit.arch import position_limit
from tests.models import tiny_model

LIMITED = [
    ("bert", "BertModel", 24),
    ("roberta", "RobertaModel", 22),
    ("xlm-roberta", "XLMRobertaForSequenceClassification", 22),
    ("mpnet", "MPNetModel", 22),
    ("distilbert", "DistilBertModel", 24),
    ("electra", "ElectraModel", 24),
    ("albert", "AlbertModel", 24),
    ("deberta-v2-conv", "DebertaV2Model", 24),
    ("opt", "OPTModel", 24),
    ("bart", "BartForSequenceClassification", 24),
    ("gpt2", "GPT2Model", 24),
    ("gpt_neo", "GPTNeoModel", 24),
]
ENDLESS = [
    ("t5", "T5EncoderModel"),
    ("deberta-v2", "DebertaV2Model"),
    ("llama", "LlamaModel"),
    ("mistral", "MistralModel"),
    ("qwen2", "Qwen2Model"),
    ("qwen3", "Qwen3Model"),
    ("xlnet", "XLNetModel"),
]


def run(model, length):
    ids = torch.full((1, length), 3)
    ids[0, -1] = 2  # BART classifies at the end token
    with torch.no_grad():
        return model(ids, attention_mask=torch.ones_like(ids))[0]


@pytest.mark.parametrize(("arch", "class_name", "limit"), LIMITED)
def test_the_longest_row_runs_and_a_longer_one_does_not(arch, class_name, limit):
    model = tiny_model(arch, class_name)
    assert position_limit(model) == limit
    assert run(model, limit).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        run(model, limit + 1)


@pytest.mark.parametrize(("arch", "class_name"), ENDLESS)
def test_relative_and_rotary_positions_have_no_end(arch, class_name):
    model = tiny_model(arch, class_name)
    assert position_limit(model) is None
    assert run(model, 40).isfinite().all()
