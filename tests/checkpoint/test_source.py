import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit.checkpoint import meta_model, open_source, read_config
from lowbit.errors import CheckpointError, UnsupportedModelError
from tests.models import edit_json, save_tiny, tiny_model


def read_all(folder):
    """Every tensor of a checkpoint by the model's own names."""
    with open_source(folder, meta_model(read_config(folder))) as source:
        return {name: source.tensor(name).clone() for name in source.names}


def edit_weights(folder, change):
    """Apply ``change`` to the tensors of a single-file checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("arch", "class_name"),
    [
        ("bert", "BertForMaskedLM"),
        ("t5", "T5ForSequenceClassification"),
        ("opt", "OPTForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
    ],
)
def test_untied_tensors_by_the_names_of_the_model(tmp_path, arch, class_name):
    found = read_all(save_tiny(tmp_path / "m", arch, class_name))
    model = tiny_model(arch, class_name)
    expected = {name: t for name, t in model.state_dict().items() if name not in model.all_tied_weights_keys}
    assert list(found) == list(expected)
    assert same(found, expected)


def test_shards_read_like_one_file(tmp_path):
    one = save_tiny(tmp_path / "one", "bert", "BertModel")
    many = save_tiny(tmp_path / "many", "bert", "BertModel", shard_size="20KB")
    assert len(list(many.glob("model-*.safetensors"))) > 2
    assert same(read_all(one), read_all(many))


def test_legacy_norm_names(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel")
    before = read_all(folder)

    def age(tensors):
        for name in list(tensors):
            if "LayerNorm" in name:
                old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                tensors[old] = tensors.pop(name)

    edit_weights(folder, age)
    assert any(name.endswith(".gamma") for name in load_file(folder / "model.safetensors"))
    assert same(read_all(folder), before)


def test_base_prefix_may_be_there_or_not(tmp_path):
    task = save_tiny(tmp_path / "task", "bert", "BertForSequenceClassification")
    expected = {n.removeprefix("bert."): t for n, t in read_all(task).items() if n.startswith("bert.")}
    edit_json(task / "config.json", lambda config: config.update(architectures=["BertModel"]))
    assert same(read_all(task), expected)

    base = save_tiny(tmp_path / "base", "gpt2", "GPT2Model")
    edit_json(base / "config.json", lambda config: config.update(architectures=["GPT2LMHeadModel"]))
    assert "transformer.h.0.attn.c_attn.weight" in read_all(base)


def test_a_declared_tie_that_the_checkpoint_contradicts(tmp_path):
    folder = save_tiny(tmp_path / "m", "t5-v1.1", "T5ForConditionalGeneration")
    found = read_all(folder)
    assert torch.equal(found["lm_head.weight"], tiny_model("t5-v1.1", "T5ForConditionalGeneration").lm_head.weight)


def test_a_tied_weight_that_is_stored_twice_with_equal_values(tmp_path):
    folder = save_tiny(tmp_path / "m", "t5", "T5ForConditionalGeneration")
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["shared.weight"].clone()}))
    assert "lm_head.weight" not in read_all(folder)


def test_a_tied_weight_that_is_stored_under_its_other_name(tmp_path):
    folder = save_tiny(tmp_path / "m", "opt", "OPTForCausalLM")
    before = read_all(folder)
    name = "model.decoder.embed_tokens.weight"
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(name)}))
    assert same(read_all(folder), before)


def test_dtype_is_that_of_the_checkpoint(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel", dtype=torch.bfloat16)
    with open_source(folder, meta_model(read_config(folder))) as source:
        assert source.dtype() == torch.bfloat16


def test_tensors_that_the_class_does_not_have_are_ignored(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel")
    before = read_all(folder)
    edit_weights(folder, lambda tensors: tensors.update({"cls.seq_relationship.bias": torch.ones(2)}))
    assert same(read_all(folder), before)


def test_missing_tensor(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel")
    edit_weights(folder, lambda tensors: tensors.pop("encoder.layer.1.output.dense.bias"))
    with pytest.raises(CheckpointError, match=r"'encoder\.layer\.1\.output\.dense\.bias' of BertModel.*incomplete"):
        read_all(folder)


def test_a_base_model_may_have_no_pooler(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel")
    before = read_all(folder)
    edit_weights(folder, lambda tensors: [tensors.pop(f"pooler.dense.{part}") for part in ("weight", "bias")])
    expected = {name: tensor for name, tensor in before.items() if not name.startswith("pooler")}
    assert same(read_all(folder), expected)


@pytest.mark.parametrize(
    ("kind", "missing"), [("BertModel", ["bias"]), ("BertForSequenceClassification", ["weight", "bias"])]
)
def test_half_a_pooler_or_none_of_one_that_is_needed(kind, missing, tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", kind)
    prefix = "" if kind == "BertModel" else "bert."
    edit_weights(folder, lambda tensors: [tensors.pop(f"{prefix}pooler.dense.{part}") for part in missing])
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.(weight|bias)' of Bert.*incomplete"):
        read_all(folder)


def test_wrong_shape(tmp_path):
    folder = save_tiny(tmp_path / "m", "gpt2", "GPT2LMHeadModel")
    name = "transformer.h.0.attn.c_attn.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].t().contiguous()}))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: tensor '.*c_attn.weight' is \[96, 32\].*\[32, 96\]"
    ):
        read_all(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_truncated_file(tmp_path, keep):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read.*fetch the file again"):
        read_all(folder)


def test_missing_files(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor pytorch_model\.bin; fetch"):
        read_all(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_all(folder)


def test_missing_shard_and_damaged_index(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel", shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    kept = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        read_all(folder)
    shard.write_bytes(kept)
    weight_map = json.loads(index.read_text())["weight_map"]
    name = next(iter(weight_map))
    other = next(file for file in weight_map.values() if file != weight_map[name])
    edit_json(index, lambda values: values["weight_map"].update({name: other}))
    with pytest.raises(CheckpointError, match=f"{other} lacks tensor '{name}' that the index lists"):
        read_all(folder)
    for text in ("{", "[]", "{}", '{"weight_map": 7}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
            read_all(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"model_type": ["bert"]}'])
def test_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((CheckpointError, UnsupportedModelError)):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "nope"}, UnsupportedModelError, "has no model type 'nope'"),
        ({"model_type": "llama"}, UnsupportedModelError, "names no llama model class"),
        ({"hidden_size": "big"}, CheckpointError, "hidden_size"),
        ({"hidden_size": 33}, CheckpointError, "33"),
        ({"hidden_act": "nope"}, CheckpointError, "nope"),
        ({"architectures": ["NoSuchModel"]}, UnsupportedModelError, "NoSuchModel"),
        ({"architectures": ["BertConfig"]}, UnsupportedModelError, "BertConfig"),
        ({"architectures": ["AutoModel"]}, UnsupportedModelError, "AutoModel"),
        ({"architectures": ["GPT2Model"]}, UnsupportedModelError, "GPT2Model"),
    ],
)
def test_config_of_another_model(tmp_path, changes, error, message):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel")
    edit_json(folder / "config.json", lambda config: config.update(changes))
    with pytest.raises(error, match=message):
        meta_model(read_config(folder))


def test_a_config_without_a_class_means_the_base_model(tmp_path):
    """As DeBERTa-v3's, whose files hold a masked language model's head too."""
    folder = save_tiny(tmp_path / "m", "deberta-v2", "DebertaV2ForMaskedLM")
    edit_json(folder / "config.json", lambda config: config.update(architectures=None))
    model = meta_model(read_config(folder))
    assert type(model).__name__ == "DebertaV2Model"
    with open_source(folder, model) as source:
        assert all(not name.startswith("cls") for name in source.names)


@pytest.mark.parametrize(
    ("arch", "class_name"), [("albert", "AlbertForMaskedLM"), ("bart", "BartForConditionalGeneration")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_of_other_architectures(tmp_path, arch, class_name, dtype):
    one = save_tiny(tmp_path / "one", arch, class_name, dtype=dtype)
    many = save_tiny(tmp_path / "many", arch, class_name, dtype=dtype, shard_size="20KB")
    assert len(list(many.glob("model-*.safetensors"))) > 1
    assert same(read_all(one), read_all(many))
