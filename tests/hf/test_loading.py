"""Loading and saving through transformers: every known trap has a test."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

import lowbit
from lowbit import LowbitConfig
from lowbit.checkpoint import manifest_metadata, tensor_entry
from lowbit.errors import CheckpointError, UnsupportedModelError
from lowbit.nn import QuantEmbedding, QuantLinear, QuantModule, TiedQuantEmbedding, TiedQuantLinear
from lowbit.quantize import quantize_checkpoint
from lowbit.recipe import Recipe
from tests.models import CLASSIFIERS, LANGUAGE_MODELS, edit_json, output, save_tiny, tiny_batch, tiny_model

MODELS = [*LANGUAGE_MODELS, *CLASSIFIERS, ("bert", "BertModel"), ("t5", "T5EncoderModel")]
OTHER_CLASSES = [
    ("bert", "BertModel", "BertForSequenceClassification", ["classifier"]),
    ("bert", "BertForMaskedLM", "BertForSequenceClassification", ["classifier", "bert.pooler.dense"]),
    ("bert", "BertForSequenceClassification", "BertForQuestionAnswering", ["qa_outputs"]),
    ("bert", "BertForSequenceClassification", "BertModel", []),
    ("roberta", "RobertaForMaskedLM", "RobertaForSequenceClassification", ["classifier.dense", "classifier.out_proj"]),
    (
        "t5",
        "T5ForConditionalGeneration",
        "T5ForSequenceClassification",
        ["classification_head.dense", "classification_head.out_proj"],
    ),
    ("t5", "T5ForSequenceClassification", "T5EncoderModel", []),
    ("opt", "OPTForCausalLM", "OPTForSequenceClassification", ["score"]),
    ("opt", "OPTModel", "OPTForCausalLM", []),
    ("gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification", ["score"]),
    ("gpt2", "GPT2Model", "GPT2LMHeadModel", []),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Gives the backbone directory of a tiny model; each is made once."""
    folder, made = tmp_path_factory.mktemp("backbones"), {}

    def make(arch, class_name, recipe="w4", dtype=torch.float32):
        key = f"{arch}-{class_name}-{recipe}-{dtype}"
        if key not in made:
            source = save_tiny(folder / f"{len(made)}/m", arch, class_name, dtype=dtype)
            made[key] = quantize_checkpoint(source, Recipe.parse(recipe), folder / f"{len(made)}/q").path
        return made[key]

    return make


@pytest.fixture
def damaged(backbone, tmp_path):
    """A copy of a BERT backbone that a test may damage."""
    for path in backbone("bert", "BertForMaskedLM").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def load(class_name, folder, **options):
    return getattr(transformers, class_name).from_pretrained(folder, **options)


def payloads(model):
    """Every stored tensor of the quantized modules, by name relative to the base model."""
    prefix = f"{model.base_model_prefix}."
    return {
        f"{path.removeprefix(prefix)}.{name}": tensor
        for path, module in model.named_modules()
        if isinstance(module, QuantModule)
        for name, tensor in module.tensor.to_tensors().items()
    }


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def stored(folder):
    """Tensors and manifest of a directory."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    return load_file(folder / "model.safetensors"), json.loads(metadata["lowbit_manifest"])


@pytest.mark.parametrize(("arch", "class_name"), MODELS)
def test_load_save_load(backbone, tmp_path, arch, class_name):
    """Quantized while loading, streamed, saved and loaded again: the same logits, tensors and manifest."""
    folder = backbone(arch, class_name)
    streamed = load(class_name, folder)
    fresh = load(class_name, folder.parent / "m", quantization_config=LowbitConfig("w4"))
    assert torch.equal(output(fresh), output(streamed))
    assert same(payloads(fresh), payloads(streamed))
    for name, model in {"a": streamed, "b": fresh}.items():
        model.save_pretrained(tmp_path / name)
        assert torch.equal(output(load(class_name, tmp_path / name)), output(streamed))
        tensors, manifest = stored(tmp_path / name)
        assert same(tensors, stored(folder)[0])
        assert manifest == stored(folder)[1]
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["quantization_config"] == json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize(("arch", "class_name"), MODELS)
def test_eight_bits_are_close_and_two_bits_are_not(backbone, arch, class_name):
    """Relative error of the output: 8 bits stay below 6 % even in these untrained models, 4 bits do not."""
    expected = output(tiny_model(arch, class_name))

    def error(recipe):
        found = output(load(class_name, backbone(arch, class_name, recipe)))
        return float((found - expected).norm() / expected.norm())

    eight, four, two = error("w8"), error("w4"), error("w2")
    assert eight < 0.06 < four < two


@pytest.mark.parametrize(("arch", "stored_class", "class_name", "heads"), OTHER_CLASSES)
def test_another_task_class(backbone, arch, stored_class, class_name, heads):
    """Codes bit-equal to the backbone's, and a fresh float head: never an empty quantized one."""
    folder = backbone(arch, stored_class)
    source = load(stored_class, folder)
    model, report = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    found = payloads(model)
    expected = {name: tensor for name, tensor in payloads(source).items() if name in found}
    assert same(found, expected)
    assert len(found) == len(payloads(source)) or class_name == "T5EncoderModel"
    assert {name.rpartition(".")[0] for name in report["missing_keys"]} == set(heads)
    for head in heads:
        assert type(model.get_submodule(head)) is nn.Linear
        assert model.get_submodule(head).weight.std() > 0
    assert output(model).isfinite().all()


@pytest.mark.parametrize(
    ("arch", "class_name", "heads"),
    [
        ("bert", "BertForSequenceClassification", ["classifier", "bert.pooler.dense"]),
        ("bert", "BertForQuestionAnswering", ["qa_outputs"]),
        ("bert", "BertForTokenClassification", ["classifier"]),
        ("bert", "BertForMaskedLM", ["cls.predictions.transform.dense"]),
        ("roberta", "RobertaForSequenceClassification", ["classifier.dense", "classifier.out_proj"]),
        ("t5", "T5ForSequenceClassification", ["classification_head.dense", "classification_head.out_proj"]),
        ("opt", "OPTForQuestionAnswering", ["qa_outputs"]),
        ("gpt2", "GPT2ForSequenceClassification", ["score"]),
    ],
)
def test_heads_with_and_without_bias_stay_float(tmp_path, arch, class_name, heads):
    source = save_tiny(tmp_path / "m", arch, class_name)
    reference = tiny_model(arch, class_name)
    model = load(class_name, source, quantization_config=LowbitConfig("w4"))
    for head in heads:
        assert type(model.get_submodule(head)) is nn.Linear
        assert torch.equal(model.get_submodule(head).weight, reference.get_submodule(head).weight)


@pytest.mark.parametrize("quantized", [True, False])
def test_another_number_of_labels(backbone, quantized):
    """A stored head of another width is an error, or a fresh head where that is asked for and transformers can."""
    folder = backbone("bert", "BertForSequenceClassification")
    options = {"num_labels": 5}
    if not quantized:
        folder, options["quantization_config"] = folder.parent / "m", LowbitConfig("w4")
    with pytest.raises((CheckpointError, RuntimeError)):
        load("BertForSequenceClassification", folder, **options)
    try:
        model = load("BertForSequenceClassification", folder, ignore_mismatched_sizes=True, **options)
    except CheckpointError as error:
        assert "[2, 32], the configuration asks for [5, 32]" in str(error)  # noqa: PT017
    else:
        assert model.classifier.weight.shape == (5, 32)
        assert len(payloads(model)) == 13 * 2 + 12 * 3


def test_a_missing_import_is_an_error_not_a_random_model(backbone):
    folder = backbone("bert", "BertModel")
    script = f"from transformers import AutoModel; AutoModel.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ignore_mismatched_sizes" in done.stderr


def test_a_flipped_byte(damaged):
    file = damaged / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '.*' does not match its checksum"):
        AutoModel.from_pretrained(damaged)


def test_a_truncated_file(damaged):
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"bytes found, \d+ expected; fetch the file again"):
        AutoModel.from_pretrained(damaged)


@pytest.mark.parametrize("consistent", [True, False], ids=["manifest rewritten", "manifest kept"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors.pop(name),
        lambda tensors, name: tensors.update({name: tensors[name][:-1].clone()}),
        lambda tensors, name: tensors.update({name: tensors[name].to(torch.int64)}),
    ],
    ids=["missing", "wrong shape", "wrong dtype"],
)
def test_a_damaged_payload(damaged, change, consistent):
    name = "bert.encoder.layer.1.output.dense.weight"
    file = damaged / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors, name)
    if consistent:
        metadata = manifest_metadata({name: tensor_entry(tensor) for name, tensor in tensors.items()})
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"'{name}'"):
        AutoModel.from_pretrained(damaged)


def test_a_checkpoint_of_another_writer(damaged):
    tensors = load_file(damaged / "model.safetensors")
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not written by lowbit"):
        AutoModel.from_pretrained(damaged)


def test_a_config_of_another_size(damaged):
    edit_json(damaged / "config.json", lambda config: config.update(intermediate_size=64))
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.0\.intermediate\.dense: the model asks for shape"):
        AutoModel.from_pretrained(damaged)


def test_shards(backbone, tmp_path):
    model = load("BertForMaskedLM", backbone("bert", "BertForMaskedLM"))
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(output(load("BertForMaskedLM", tmp_path)), output(model))
    data = bytearray(shards[1].read_bytes())
    data[-1] ^= 1
    shards[1].write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{shards[1].name}: tensor .* checksum"):
        load("BertForMaskedLM", tmp_path)
    shards[1].write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"{shards[1].name}: .* expected"):
        load("BertForMaskedLM", tmp_path)


def test_a_state_dict_is_no_directory(backbone):
    folder = backbone("bert", "BertModel")
    config = transformers.AutoConfig.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="pass a directory"):
        transformers.BertModel.from_pretrained(None, config=config, state_dict=load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("arch", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_keeps_the_payload(backbone, arch, dtype):
    class_name = dict(LANGUAGE_MODELS)[arch]
    model = load(class_name, backbone(arch, class_name))
    before = {name: tensor.clone() for name, tensor in payloads(model).items()}
    expected = output(model)
    model.to(dtype)
    assert same(payloads(model), before)
    assert output(model).dtype == dtype
    model.to(torch.float32)
    assert torch.allclose(output(model), expected, rtol=0.1, atol=0.1)  # norms and biases were rounded on the way


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision_keeps_the_payload(backbone, arch, class_name, dtype):
    """Scales stay float32, though transformers casts every floating tensor that it may."""
    folder = backbone(arch, class_name)
    model = load(class_name, folder, dtype=dtype)
    assert model.dtype == dtype
    assert same(payloads(model), payloads(load(class_name, folder)))
    logits = output(model)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    expected = output(load(class_name, folder))
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()


def test_widening_a_half_precision_backbone_keeps_the_payload(backbone):
    folder = backbone("bert", "BertModel", dtype=torch.bfloat16)
    model = load("BertModel", folder, dtype=torch.float32)
    assert model.dtype == torch.float32
    assert same(payloads(model), payloads(load("BertModel", folder)))
    assert output(model).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_t5_wo_is_quantized_in_half_precision_checkpoints(backbone, tmp_path, dtype):
    """Upstream keeps ``wo`` in float32 because it overflows in float16; quantized it loads, saves and is finite."""
    folder = backbone("t5", "T5ForConditionalGeneration", dtype=dtype)
    model = load("T5ForConditionalGeneration", folder)
    wo = model.encoder.block[0].layer[1].DenseReluDense.wo
    assert type(wo) is QuantLinear
    assert {name: tensor.dtype for name, tensor in wo.tensor.to_tensors().items()} == {
        "weight": torch.uint8,
        "scale": torch.float32,
        "outlier_ptr": torch.int32,
        "outlier_col": torch.uint16,
        "outlier_value": torch.float16,
    }
    assert output(model).isfinite().all()
    model.save_pretrained(tmp_path)
    assert same(stored(tmp_path)[0], stored(folder)[0])
    inputs = []
    wo.register_forward_pre_hook(lambda module, args: inputs.append(args[0].dtype))
    output(model)
    assert inputs == [torch.float32]  # computed in float32, as upstream does


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_a_deep_copy_gives_equal_outputs(backbone, arch, class_name):
    model = load(class_name, backbone(arch, class_name))
    twin = copy.deepcopy(model)
    expected = output(model)
    for module in model.modules():
        if isinstance(module, QuantModule):
            module.scale.zero_()
    assert torch.equal(output(twin), expected)
    assert not torch.equal(output(model), expected)


@pytest.mark.parametrize(
    ("arch", "class_name", "table", "head"),
    [
        ("bert", "BertForMaskedLM", "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
        ("roberta", "RobertaForMaskedLM", "roberta.embeddings.word_embeddings", "lm_head.decoder"),
        ("t5", "T5ForConditionalGeneration", "shared", "lm_head"),
        ("opt-projected", "OPTForCausalLM", "model.decoder.embed_tokens", "lm_head"),
        ("gpt2", "GPT2LMHeadModel", "transformer.wte", "lm_head"),
    ],
)
def test_tied_weights_share_one_payload(backbone, tmp_path, arch, class_name, table, head):
    model = load(class_name, backbone(arch, class_name))
    assert type(model.get_submodule(table)) is QuantEmbedding
    assert type(model.get_submodule(head)) is TiedQuantLinear
    assert model.get_submodule(head).source is model.get_submodule(table)
    expected = output(model)
    model.tie_weights()
    assert torch.equal(output(model), expected)
    model.save_pretrained(tmp_path)
    tensors = stored(tmp_path)[0]
    assert f"{head}.weight" not in tensors
    assert tensors[f"{table}.weight"].dtype == torch.uint8
    width = model.get_submodule(table).embedding_dim
    assert not [name for name, tensor in tensors.items() if tensor.shape == (64, width)]  # no float copy
    model.get_submodule(table).scale.mul_(2)
    assert not torch.equal(output(model), expected)


def test_t5_stacks_read_the_shared_table(backbone):
    model = load("T5ForConditionalGeneration", backbone("t5", "T5ForConditionalGeneration"))
    for stack in (model.encoder, model.decoder):
        assert type(stack.embed_tokens) is TiedQuantEmbedding
        ids = torch.tensor([[3, 5]])
        assert torch.equal(stack.embed_tokens(ids), model.shared(ids))


def test_t5_with_its_own_output_projection(backbone, tmp_path):
    folder = backbone("t5-v1.1", "T5ForConditionalGeneration")
    model = load("T5ForConditionalGeneration", folder)
    own = tiny_model("t5-v1.1", "T5ForConditionalGeneration").lm_head.weight
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model.lm_head.weight, own)
    assert model.config.scale_decoder_outputs is False
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, own)
    model.save_pretrained(tmp_path)
    assert torch.equal(stored(tmp_path)[0]["lm_head.weight"], own)


def test_resizing_is_a_typed_error(backbone):
    model = load("GPT2LMHeadModel", backbone("gpt2", "GPT2LMHeadModel"))
    with pytest.raises(UnsupportedModelError, match="resize the float model first"):
        model.resize_token_embeddings(80)


def test_gpt2_conv1d_is_transposed_once(backbone):
    model = load("GPT2LMHeadModel", backbone("gpt2", "GPT2LMHeadModel", "w8"))
    found = model.transformer.h[0].mlp.c_fc
    expected = tiny_model("gpt2", "GPT2LMHeadModel").transformer.h[0].mlp.c_fc.weight.t()
    assert type(found) is QuantLinear
    assert found.weight.shape == expected.shape == (128, 32)
    assert (found.weight - expected).abs().max() < 0.02


def test_generation_runs_on_a_backbone(backbone):
    for arch, class_name in [("gpt2", "GPT2LMHeadModel"), ("t5", "T5ForConditionalGeneration")]:
        model = load(class_name, backbone(arch, class_name))
        ids = model.generate(**tiny_batch(model.config), max_new_tokens=4, do_sample=False)
        assert ids.shape[0] == 2


def test_an_encoder_of_a_whole_backbone_can_be_saved(backbone, tmp_path):
    model = load("T5EncoderModel", backbone("t5", "T5ForConditionalGeneration"))
    model.save_pretrained(tmp_path)
    assert torch.equal(output(load("T5EncoderModel", tmp_path)), output(model))
    config = json.loads((tmp_path / "config.json").read_text())
    names = [name for group in config["quantization_config"]["groups"] for name in group["modules"]]
    assert names
    assert not [name for name in names if name.startswith("decoder")]


def test_an_encoder_keeps_a_recipe_that_speaks_of_the_decoder(backbone, tmp_path):
    source = backbone("t5", "T5ForConditionalGeneration").parent / "m"
    recipe = Recipe.parse({"scheme": "w4", "skip": ["decoder.*.wo"]})
    quantize_checkpoint(source, recipe, tmp_path / "q")
    encoder = load("T5EncoderModel", tmp_path / "q")
    lowbit.save(encoder, tmp_path / "e")
    assert torch.equal(output(load("T5EncoderModel", tmp_path / "e")), output(encoder))


def test_a_base_model_gets_a_fresh_language_model_head(backbone):
    model = load("BertForMaskedLM", backbone("bert", "BertForSequenceClassification"))
    head = model.cls.predictions
    assert type(head.decoder) is TiedQuantLinear
    assert head.decoder.bias is head.bias
    assert type(head.transform.dense) is nn.Linear
    assert output(model).isfinite().all()


def test_a_model_quantized_in_memory_can_be_saved_by_transformers(backbone, tmp_path):
    model = tiny_model("bert", "BertForMaskedLM")
    lowbit.quantize(model, "w4")
    assert model.is_quantized
    model.save_pretrained(tmp_path)
    assert same(stored(tmp_path)[0], stored(backbone("bert", "BertForMaskedLM"))[0])
    assert torch.equal(output(load("BertForMaskedLM", tmp_path)), output(model))


def test_the_stored_recipe_wins(backbone):
    folder = backbone("bert", "BertModel")
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = load("BertModel", folder, quantization_config=LowbitConfig("w2"))
    assert same(payloads(model), payloads(load("BertModel", folder)))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {"bert": "disk", "classifier": "cpu"}], ids=str)
def test_device_maps(backbone, tmp_path, device_map):
    folder = backbone("bert", "BertForSequenceClassification")
    model = load("BertForSequenceClassification", folder, device_map=device_map, offload_folder=str(tmp_path))
    assert torch.equal(output(model).cpu(), output(load("BertForSequenceClassification", folder)))


def test_the_trainer_accepts_the_model(backbone, tmp_path):
    """One step on the head; the backbone does not change, and the saved checkpoint loads."""
    folder = backbone("bert", "BertForMaskedLM")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    before = {name: tensor.clone() for name, tensor in payloads(model).items()}
    head = model.classifier.weight.detach().clone()
    batch = tiny_batch(model.config)
    rows = [{**{name: value[row] for name, value in batch.items()}, "labels": row} for row in (0, 1)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, learning_rate=0.1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    assert same(payloads(model), before)
    assert not torch.equal(model.classifier.weight, head)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(output(again), output(model.eval()))


@pytest.mark.parametrize(
    ("arch", "class_name"), [("bert", "BertForSequenceClassification"), ("gpt2", "GPT2LMHeadModel")]
)
def test_compile_traces_the_whole_graph(backbone, arch, class_name):
    model = load(class_name, backbone(arch, class_name))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    batch = tiny_batch(model.config)
    with torch.no_grad():
        assert torch.allclose(compiled(**batch).logits, output(model), rtol=1e-5, atol=1e-5)


def test_plug_in_answers(backbone):
    model = load("BertModel", backbone("bert", "BertModel"))
    quantizer = model.hf_quantizer
    assert model.is_quantized
    assert quantizer.is_serializable()
    assert quantizer.is_trainable is True
    assert quantizer.is_qat_trainable is True
    with pytest.raises(CheckpointError, match="load the float model instead"):
        model.dequantize()


def test_config_object(backbone):
    folder = backbone("bert", "BertModel")
    config = transformers.AutoConfig.from_pretrained(folder)
    parsed = LowbitConfig.from_dict(config.quantization_config)
    assert parsed.parsed_recipe() == Recipe.parse("w4")
    assert len(parsed.modules()) == 13
    with pytest.warns(UserWarning, match=r"unknown keys.*\['later'\]"):
        LowbitConfig("w4", later=1)


def test_auto_classes_pick_their_heads(backbone):
    folder = backbone("bert", "BertForMaskedLM")
    assert AutoModelForMaskedLM.from_pretrained(folder).config.architectures == ["BertForMaskedLM"]
    assert type(AutoModelForQuestionAnswering.from_pretrained(folder).qa_outputs) is nn.Linear
