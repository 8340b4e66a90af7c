import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.arch import find_module, float_weight
from lowbit.checkpoint import read_manifest, verify_backbone
from lowbit.errors import CheckpointError, OutputExistsError, SchemeError, UnsupportedModelError, WeightError
from lowbit.nn import QuantModule
from lowbit.qtensor import QuantizedTensor, quantize_tensor
from lowbit.quantize import quantize_checkpoint, quantize_model
from lowbit.recipe import Recipe
from lowbit.scheme import OutlierRule, Scheme
from tests.models import file_bytes, save_tiny, tiny_model

W4 = Recipe.parse("w4")
RANDOM = Recipe(scheme=Scheme(outliers=OutlierRule(rule="random", share=0.01)))
SIGMA = Recipe(scheme=Scheme(strategy="sigma", outliers=OutlierRule(rule="tail", share=None, sigma=2.5)))


def in_memory(source, recipe, output, seed=0):
    """Load a float checkpoint, quantize it in place and save it."""
    class_name = transformers.AutoConfig.from_pretrained(source).architectures[0]
    model = getattr(transformers, class_name).from_pretrained(source)
    plan = lowbit.quantize(model, recipe, seed=seed)
    lowbit.save(model, output)
    return plan


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "recipe",
    [
        RANDOM,
        SIGMA,
        Recipe.parse("w3g16o0"),
        Recipe.parse({"scheme": {"bits": 5, "symmetric": False, "strategy": "minmax"}, "embeddings": 4}),
        Recipe.parse({"scheme": "w2t", "embeddings": "float", "skip": ["*.key"]}),
    ],
    ids=["random", "sigma", "groups", "asymmetric", "tensor"],
)
def test_streaming_and_in_memory_agree_for_every_kind_of_scheme(tmp_path, recipe):
    source = save_tiny(tmp_path / "m", "bert", "BertForMaskedLM")
    done = quantize_checkpoint(source, recipe, tmp_path / "a", seed=3)
    assert in_memory(source, recipe, tmp_path / "b", seed=3) == done.plan
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("arch", "class_name"), [("bert", "BertModel"), ("t5", "T5ForConditionalGeneration")])
def test_half_precision_checkpoints(tmp_path, dtype, arch, class_name):
    source = save_tiny(tmp_path / "m", arch, class_name, dtype=dtype)
    quantize_checkpoint(source, W4, tmp_path / "a")
    in_memory(source, W4, tmp_path / "b")
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")
    stored = {name: entry.dtype for name, entry in read_manifest(tmp_path / "a/model.safetensors").items()}
    assert {d for name, d in stored.items() if name.endswith("scale")} == {torch.float32}
    assert {d for name, d in stored.items() if "orm." in name} == {dtype}


def test_t5_whose_wo_transformers_kept_in_float32(tmp_path):
    half = save_tiny(tmp_path / "half", "t5", "T5ForConditionalGeneration", dtype=torch.float16)
    transformers.T5ForConditionalGeneration.from_pretrained(half).save_pretrained(tmp_path / "m")
    assert load_file(tmp_path / "m/model.safetensors")["encoder.block.0.layer.1.DenseReluDense.wo.weight"].dtype == (
        torch.float32
    )
    quantize_checkpoint(tmp_path / "m", W4, tmp_path / "a")
    in_memory(tmp_path / "m", W4, tmp_path / "b")
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")


@pytest.mark.parametrize(("arch", "class_name"), [("bert", "BertModel"), ("gpt2", "GPT2Model")])
def test_what_is_written_is_what_the_pure_function_gives(tmp_path, arch, class_name):
    source = save_tiny(tmp_path / "m", arch, class_name)
    done = quantize_checkpoint(source, W4, tmp_path / "q")
    stored = load_file(tmp_path / "q/model.safetensors")
    model = tiny_model(arch, class_name)
    quantized = set()
    for entry in done.plan.quantized:
        path = find_module(model, entry.name)
        module = model.get_submodule(path)
        parts = {name: tensor for name, tensor in stored.items() if name.rpartition(".")[0] == path}
        quantized |= set(parts)
        bias = parts.pop(f"{path}.bias", None)
        assert bias is None or torch.equal(bias, module.bias)
        parts = {name.removeprefix(f"{path}."): tensor for name, tensor in parts.items()}
        found = QuantizedTensor.from_tensors(parts, entry.scheme, entry.shape)
        expected = quantize_tensor(float_weight(module, module.weight.data), entry.scheme)
        assert torch.equal(found.dequantize(), expected.dequantize())
    floats = {name: t for name, t in model.state_dict().items() if name not in quantized}
    assert set(stored) == set(floats) | quantized
    assert all(torch.equal(stored[name], tensor) for name, tensor in floats.items())


def test_shards_give_the_same_bytes(tmp_path):
    one = save_tiny(tmp_path / "one/m", "t5", "T5ForConditionalGeneration")
    many = save_tiny(tmp_path / "many/m", "t5", "T5ForConditionalGeneration", shard_size="20KB")
    assert len(list(many.glob("*.safetensors"))) > 3
    quantize_checkpoint(one, W4, tmp_path / "a")
    quantize_checkpoint(many, W4, tmp_path / "b")
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")


def test_legacy_norm_names(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertForMaskedLM")
    quantize_checkpoint(source, W4, tmp_path / "a")

    def age(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[old] = tensors.pop(name)

    edit_weights(source, age)
    quantize_checkpoint(source, W4, tmp_path / "b")
    in_memory(source, W4, tmp_path / "c")
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b") == file_bytes(tmp_path / "c")


@pytest.mark.parametrize(
    ("arch", "class_name", "base"),
    [
        ("bert", "BertForSequenceClassification", "bert"),
        ("gpt2", "GPT2LMHeadModel", "transformer"),
        ("opt", "OPTForCausalLM", "model"),
        ("t5", "T5ForSequenceClassification", "transformer"),
    ],
)
def test_task_class_and_base_model_give_the_same_backbone(tmp_path, arch, class_name, base):
    task = tiny_model(arch, class_name)
    task.save_pretrained(tmp_path / "task")
    getattr(task, base).save_pretrained(tmp_path / "base")
    quantize_checkpoint(tmp_path / "task", W4, tmp_path / "a")
    quantize_checkpoint(tmp_path / "base", W4, tmp_path / "b")
    assert verify_backbone(tmp_path / "a").fingerprint == verify_backbone(tmp_path / "b").fingerprint


def test_an_own_output_projection_of_t5_is_kept(tmp_path):
    source = save_tiny(tmp_path / "m", "t5-v1.1", "T5ForConditionalGeneration")
    done = quantize_checkpoint(source, W4, tmp_path / "q")
    stored = load_file(tmp_path / "q/model.safetensors")
    assert torch.equal(stored["lm_head.weight"], load_file(source / "model.safetensors")["lm_head.weight"])
    head = next(entry for entry in done.plan.entries if entry.name == "lm_head")
    assert (head.kind, head.reason) == ("skipped", "task head")


@pytest.mark.parametrize("scheme", [W4.scheme, Scheme(granularity="tensor", outliers=SIGMA.scheme.outliers)], ids=str)
def test_the_number_of_threads_does_not_matter(tmp_path, with_threads, scheme):
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 1}  # large enough to be split
    source = save_tiny(tmp_path / "m", "bert", "BertModel", **sizes)
    recipe = Recipe(scheme=scheme, skip=("*.attention.*", "*.output.dense"))  # leaves one matrix, for speed
    outputs = iter([tmp_path / "one", tmp_path / "two"])
    one, two = with_threads(lambda: quantize_checkpoint(source, recipe, next(outputs)))
    assert file_bytes(one.path) == file_bytes(two.path)


def states():
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


def test_random_states_of_the_caller_are_untouched(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    model = tiny_model("bert", "BertModel")
    before = states()
    quantize_checkpoint(source, RANDOM, tmp_path / "q", seed=5)
    quantize_model(model, RANDOM, seed=5)
    after = states()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_random_outliers_depend_on_the_seed_only(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    quantize_checkpoint(source, RANDOM, tmp_path / "a", seed=1)
    torch.manual_seed(99)
    quantize_checkpoint(source, RANDOM, tmp_path / "b", seed=1)
    quantize_checkpoint(source, RANDOM, tmp_path / "c", seed=2)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_random_outliers_of_a_module_do_not_depend_on_the_others(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    fewer = Recipe(scheme=RANDOM.scheme, skip=("encoder.layer.0.*",))
    quantize_checkpoint(source, RANDOM, tmp_path / "a")
    quantize_checkpoint(source, fewer, tmp_path / "b")
    all_of_them, some = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    columns = [name for name in some if name.endswith("outlier_col")]
    assert columns
    assert all(torch.equal(all_of_them[name], some[name]) for name in columns)
    assert len({all_of_them[name].numpy().tobytes() for name in columns}) == len(columns)


def test_every_sigma_outlier_is_stored(tmp_path):
    source = save_tiny(tmp_path / "m", "gpt2", "GPT2Model")
    quantize_checkpoint(source, SIGMA, tmp_path / "q")
    stored = load_file(tmp_path / "q/model.safetensors")
    weight = tiny_model("gpt2", "GPT2Model").h[0].mlp.c_fc.weight.detach().t()
    outside = weight[(weight - weight.mean()).abs() > 2.5 * weight.std(correction=0)]
    assert torch.equal(stored["h.0.mlp.c_fc.outlier_value"], outside.half())
    assert outside.numel() > 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("encoder.layer.1.output.dense.weight", r"^encoder\.layer\.1\.output\.dense: 1 of 1536 weights"),
        ("embeddings.word_embeddings.weight", r"^embeddings\.word_embeddings: "),
        ("encoder.layer.1.output.LayerNorm.weight", r"^encoder\.layer\.1\.output\.LayerNorm\.weight: "),
        ("encoder.layer.0.output.dense.bias", r"^encoder\.layer\.0\.output\.dense\.bias: "),
        ("pooler.dense.weight", r"^pooler\.dense\.weight: "),
    ],
)
def test_nan_and_infinity_are_named_and_leave_nothing(tmp_path, bad, tensor, named):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    edit_weights(source, lambda tensors: tensors[tensor].view(-1)[-1:].fill_(bad))
    with pytest.raises(WeightError, match=named):
        quantize_checkpoint(source, W4, tmp_path / "out/q")
    assert list((tmp_path / "out").iterdir()) == []
    model = transformers.BertModel.from_pretrained(source)
    with pytest.raises(WeightError, match=named):
        quantize_model(model, W4)
    assert not any(isinstance(module, QuantModule) for module in model.modules())


def test_an_outlier_beyond_half_precision_is_named(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    edit_weights(source, lambda tensors: tensors["encoder.layer.0.output.dense.weight"].view(-1)[:1].fill_(1e5))
    with pytest.raises(WeightError, match=r"^encoder\.layer\.0\.output\.dense: an outlier of 1e\+05"):
        quantize_checkpoint(source, W4, tmp_path / "q")


def test_an_existing_output_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q/mine").write_text("x")
    with pytest.raises(OutputExistsError, match="exists already"):
        quantize_checkpoint(tmp_path / "nowhere", W4, tmp_path / "q")
    assert [path.name for path in (tmp_path / "q").iterdir()] == ["mine"]
    model = tiny_model("bert", "BertModel")
    lowbit.quantize(model, W4)
    with pytest.raises(OutputExistsError):
        lowbit.save(model, tmp_path / "q")


def test_ctrl_c_leaves_nothing(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")

    def interrupt(done, total, name):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, W4, tmp_path / "q", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_killed_process_leaves_nothing_that_looks_complete(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    script = f"""
import os, signal
from lowbit.quantize import quantize_checkpoint
from lowbit.recipe import Recipe
kill = lambda done, total, name: os.kill(os.getpid(), signal.SIGKILL) if done == total else None
quantize_checkpoint({str(source)!r}, Recipe(), {str(tmp_path / "q")!r}, progress=kill)
"""
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (left,) = (path for path in tmp_path.iterdir() if path.name != "m")
    assert left.name.startswith(".q.partial-")
    with pytest.raises(CheckpointError):
        verify_backbone(left)
    quantize_checkpoint(source, W4, tmp_path / "q")
    verify_backbone(tmp_path / "q")


def test_progress_counts_every_tensor_once(tmp_path):
    calls = []
    source = save_tiny(tmp_path / "m", "t5", "T5ForConditionalGeneration")
    quantize_checkpoint(source, W4, tmp_path / "q", progress=lambda *call: calls.append(call))
    names = list(load_file(source / "model.safetensors"))
    assert [done for done, _, _ in calls] == list(range(len(names) + 1))
    assert {total for _, total, _ in calls} == {len(names)}
    assert sorted(name for _, _, name in calls[:-1]) == sorted(names)


def test_what_is_quantized_already_is_refused(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    quantize_checkpoint(source, W4, tmp_path / "q")
    with pytest.raises(CheckpointError, match="quantized already; start from the float model"):
        quantize_checkpoint(tmp_path / "q", W4, tmp_path / "qq")
    model = transformers.BertModel.from_pretrained(tmp_path / "q")
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        quantize_model(model, W4)
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        lowbit.plan(model, W4)


def test_a_recipe_that_does_not_fit_leaves_nothing(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    with pytest.raises(SchemeError, match="matches no quantizable module"):
        quantize_checkpoint(source, Recipe.parse({"skip": ["nothing"]}), tmp_path / "q")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_seed_and_source_do_not_leak_into_the_files(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    quantize_checkpoint(source, W4, tmp_path / "a", seed=1)
    quantize_checkpoint(source, W4, tmp_path / "b", seed=2)
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in (tmp_path / "a").iterdir())


BUDGETS = {"spread": {"scheme": {"bits": 3, "outliers": {"spread": "model"}}}, "bits": {"target_bits": 7.5}}
BUDGETS["both"] = BUDGETS["spread"] | {"target_bits": 7.5}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("arch", "class_name"), [("bert", "BertForMaskedLM"), ("gpt2", "GPT2LMHeadModel")])
def test_budgets_agree_on_every_path(tmp_path, arch, class_name, budget):
    recipe = Recipe.parse(BUDGETS[budget] | {"overrides": [{"match": "*.1.*", "scheme": "w8"}]})
    source = save_tiny(tmp_path / "m", arch, class_name)
    done = quantize_checkpoint(source, recipe, tmp_path / "a")
    assert in_memory(source, recipe, tmp_path / "b") == done.plan == lowbit.plan(source, recipe)
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")
    assert verify_backbone(tmp_path / "a").quantized_modules == len(done.plan.quantized)
    assert done.size.effective_bits == pytest.approx(done.plan.effective_bits)
    lowbit.save(getattr(transformers, class_name).from_pretrained(tmp_path / "a"), tmp_path / "c")
    saved = {
        name: value for name, value in file_bytes(tmp_path / "c").items() if name != "README.md"
    }  # names its source
    assert saved.items() < file_bytes(tmp_path / "a").items()


def test_errors_are_those_of_what_is_stored(tmp_path):
    recipe = Recipe.parse({"scheme": "w3o2", "overrides": [{"match": "*.1.*", "scheme": {"symmetric": False}}]})
    source = save_tiny(tmp_path / "m", "gpt2", "GPT2LMHeadModel")
    done = quantize_checkpoint(source, recipe, tmp_path / "q")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "q")
    before = transformers.GPT2LMHeadModel.from_pretrained(source)
    assert list(done.plan.errors) == [entry.name for entry in done.plan.quantized]
    assert model.config.quantization_config.errors == done.plan.errors
    for name, error in done.plan.errors.items():
        path = find_module(model, name)
        module = before.get_submodule(path)
        weight = float_weight(module, module.weight.data)
        true = (weight - model.get_submodule(path).weight).norm() / weight.norm()
        assert error == pytest.approx(float(true), rel=1e-3)
        assert float(f"{error:.4g}") == error
