"""Publishing and reading back, against a stand-in for the hub on this machine."""

import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, constants
from transformers import AutoModel, AutoModelForSequenceClassification

import lowbit
from lowbit.adapter import read_info, record_scores
from lowbit.checkpoint import checkpoint_folder
from lowbit.errors import AdapterError, CheckpointError, HubError, OutputExistsError
from tests.hub_server import Hub
from tests.models import edit_json, file_bytes, payloads, same
from tests.tiny import options, toy_data

TEXTS = ["good film", "awful song the book"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on which the user ``me`` is logged in, and an empty cache."""
    with Hub() as running:
        settings = {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        huggingface_hub.utils.disable_progress_bars()
        huggingface_hub.close_session()  # an open one would go on being offline
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def copy(tmp_path):
    """Calls with a directory; gives a copy that may be changed."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copy")


def card_of(hub, name):
    return ModelCard(hub.repos[name].files["README.md"].decode())


def test_backbone_and_adapter_are_read_back_by_their_names(hub, tiny):
    backbone, adapter = tiny.backbone("bert"), tiny.adapter("bert")
    pushed = lowbit.push(backbone, "me/backbone")
    lowbit.push(adapter, "me/adapter", backbone="me/backbone")
    repo = hub.repos["me/backbone"]
    assert (pushed.repo_id, pushed.url, pushed.commit) == ("me/backbone", f"{hub.url}/me/backbone", repo.head)
    assert set(pushed.files) == {path.name for path in backbone.iterdir()} == set(repo.files) - {".gitattributes"}
    for folder, name in ((backbone, "me/backbone"), (adapter, "me/adapter")):
        for path in folder.iterdir():
            assert path.name == "README.md" or hub.repos[name].files[path.name] == path.read_bytes()

    expected = list(lowbit.predict(backbone, TEXTS, adapter=adapter))
    assert list(lowbit.predict("me/backbone", TEXTS, adapter="me/adapter")) == expected
    fetched = checkpoint_folder("me/backbone")
    assert lowbit.verify(fetched) == lowbit.verify(fetched)
    assert lowbit.verify(fetched).fingerprint == lowbit.verify(backbone).fingerprint
    model = lowbit.load("me/backbone", adapter="me/adapter")
    assert same(payloads(model), payloads(lowbit.load(backbone, adapter)))
    scores = lowbit.evaluate("me/backbone", toy_data(), adapter="me/adapter")
    assert scores == lowbit.evaluate(backbone, toy_data(), adapter=adapter)


def test_another_process_predicts_by_name(hub, tiny, tmp_path):
    lowbit.push(tiny.backbone("bert"), "me/backbone")
    lowbit.push(tiny.adapter("bert"), "me/adapter")
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-c", "from lowbit.cli import main; main()", "predict", "me/backbone", *TEXTS]
    command += ["--adapter", "me/adapter", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    expected = list(lowbit.predict(tiny.backbone("bert"), TEXTS, adapter=tiny.adapter("bert")))
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


def test_a_merged_model(hub, tiny):
    lowbit.push(tiny.merged("bert"), "me/merged", private=True)
    assert hub.repos["me/merged"].private
    assert list(lowbit.predict("me/merged", TEXTS)) == list(lowbit.predict(tiny.merged("bert"), TEXTS))


def test_the_own_namespace_is_the_default(hub, tiny):
    assert lowbit.push(tiny.backbone("bert"), "backbone").repo_id == "me/backbone"
    assert 'lowbit.load("me/backbone")' in card_of(hub, "me/backbone").text


def test_merging_and_tuning_start_from_names(hub, tiny, tmp_path):
    lowbit.push(tiny.backbone("bert"), "me/backbone")
    lowbit.push(tiny.adapter("bert"), "me/adapter")
    merged = lowbit.merge("me/backbone", "me/adapter", tmp_path / "merged")
    assert file_bytes(merged)["model.safetensors"] == file_bytes(tiny.merged("bert"))["model.safetensors"]
    assert ModelCard.load(merged / "README.md").data.base_model == "me/backbone"
    lowbit.tune("me/backbone", tmp_path / "tuned", toy_data(), options=options())
    assert read_info(tmp_path / "tuned").backbone == "me/backbone"
    lowbit.push(tmp_path / "tuned", "me/tuned")
    card = card_of(hub, "me/tuned")
    assert (card.data.base_model, card.data["base_model_relation"]) == ("me/backbone", "adapter")
    assert 'lowbit.load("me/backbone", adapter="me/tuned")' in card.text


def test_shards_travel_with_their_index(hub, tiny, tmp_path):
    lowbit.load(tiny.backbone("bert")).save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    lowbit.push(tmp_path / "shards", "me/shards")
    assert "model.safetensors.index.json" in hub.repos["me/shards"].files
    assert same(payloads(AutoModel.from_pretrained("me/shards")), payloads(lowbit.load(tiny.backbone("bert"))))
    assert "-bit `BertModel`" in card_of(hub, "me/shards").text  # generated: save_pretrained writes none


def test_only_what_belongs_is_uploaded(hub, tiny, copy):
    folder = copy(tiny.backbone("bert"))
    (folder / "notes.txt").write_text("mine")
    (folder / ".model.safetensors.partial").write_text("half")
    (folder / "model-00001-of-00002.safetensors").write_text("old")
    (folder / "runs").mkdir()
    lowbit.push(folder, "me/backbone")
    expected = {path.name for path in tiny.backbone("bert").iterdir()}
    assert set(hub.repos["me/backbone"].files) == expected | {".gitattributes"}


def test_a_damaged_directory_is_not_published(hub, tiny, copy):
    folder = copy(tiny.backbone("bert"))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        lowbit.push(folder, "me/backbone")
    with pytest.raises(CheckpointError, match="not a lowbit backbone"):
        lowbit.push(tiny.model("bert"), "me/backbone")
    assert (hub.repos, hub.requests) == ({}, [])


def test_the_same_files_again_change_nothing(hub, tiny):
    first = lowbit.push(tiny.backbone("bert"), "me/backbone")
    again = lowbit.push(tiny.backbone("bert"), "me/backbone")
    assert (again.commit, again.files) == (first.commit, ())


def test_a_card_that_was_edited_there_stays(hub, tiny, copy):
    lowbit.push(tiny.backbone("bert"), "me/backbone")
    repo = hub.repos["me/backbone"]
    edited = repo.files | {"README.md": b"# Mine", "plot.png": b"x"}
    edited.pop("plan.json")
    repo.commit(edited)
    assert lowbit.push(tiny.backbone("bert"), "me/backbone").files == ("plan.json",)
    assert (repo.files["README.md"], repo.files["plot.png"]) == (b"# Mine", b"x")


def test_another_model_is_replaced_only_on_request(hub, tiny):
    lowbit.push(tiny.backbone("bert"), "me/backbone")
    repo = hub.repos["me/backbone"]
    before = dict(repo.files)
    other = tiny.backbone("gpt2")
    with pytest.raises(OutputExistsError, match=r"holds another model \(.*config.json, .*model.safetensors.*\)"):
        lowbit.push(other, "me/backbone")
    with pytest.raises(OutputExistsError, match="holds another model"):
        lowbit.push(tiny.adapter("bert"), "me/backbone")
    assert repo.files == before
    lowbit.push(other, "me/backbone", replace=True)
    assert "GPT2LMHeadModel" in card_of(hub, "me/backbone").text
    assert set(repo.files) - {".gitattributes"} == {path.name for path in other.iterdir()}
    assert same(payloads(lowbit.load("me/backbone")), payloads(lowbit.load(other)))
    lowbit.push(tiny.adapter("bert"), "me/backbone", replace=True)
    assert set(repo.files) == {".gitattributes", "README.md", "task_adapter.json", "task_adapter.safetensors"}


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        ("", "me/backbone", "me/backbone: you are not logged in, .*; run `hf auth login`"),
        ("hf_wrong", "me/backbone", "not logged in, or the token is not valid"),
        ("hf_other", "me/backbone", "you may not write there; use a token with write permission"),
        ("hf_me", "a/b/c", "'a/b/c' is no name of a repository"),
        ("hf_me", "me/--", "'me/--' is no name of a repository"),
    ],
)
def test_refusals(hub, tiny, monkeypatch, token, name, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message):
        lowbit.push(tiny.backbone("bert"), name)
    assert hub.repos == {}


def test_a_repository_of_someone_else(hub, tiny):
    lowbit.push(tiny.backbone("bert"), "other/backbone", token="hf_other")
    repo = hub.repos["other/backbone"]
    head = repo.head
    lowbit.push(tiny.backbone("bert"), "other/backbone")  # nothing to write
    with pytest.raises(HubError, match="you may not write there"):
        lowbit.push(tiny.backbone("gpt2"), "other/backbone", replace=True)
    assert repo.head == head
    repo.private = True
    with pytest.raises(HubError, match="you may not write there"):
        lowbit.push(tiny.backbone("bert"), "other/backbone")
    with pytest.raises(CheckpointError, match="other/backbone is neither a local folder nor a model on the hub"):
        lowbit.load("other/backbone")


def test_private_is_not_taken_for_granted(hub, tiny):
    lowbit.push(tiny.backbone("bert"), "me/backbone")
    with pytest.raises(HubError, match="me/backbone exists and is public; make it private"):
        lowbit.push(tiny.backbone("bert"), "me/backbone", private=True)


def test_a_change_meanwhile_is_noticed(hub, tiny, monkeypatch):
    asked = huggingface_hub.HfApi.model_info

    def model_info(api, name, **settings):
        info = asked(api, name, **settings)
        hub.repos[name].commit({"config.json": b"of someone else"})
        return info

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(HubError, match="the repository changed meanwhile; try again"):
        lowbit.push(tiny.backbone("bert"), "me/backbone")


def test_a_card_that_the_hub_refuses(hub, tiny, copy):
    folder = copy(tiny.backbone("bert"))
    (folder / "README.md").write_text("---\nlicense: [a\n---\n")
    with pytest.raises(HubError, match=r"nothing was published: Invalid metadata in README.md"):
        lowbit.push(folder, "me/backbone")
    assert set(hub.repos["me/backbone"].files) == {".gitattributes"}


def test_switched_off_or_out_of_reach(hub, tiny, monkeypatch):
    lowbit.push(tiny.backbone("bert"), "me/backbone")
    lowbit.load("me/backbone")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"the hub cannot be reached .*; look at the connection and HF_ENDPOINT"):
        lowbit.push(tiny.backbone("bert"), "me/backbone")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(HubError, match="switched off by HF_HUB_OFFLINE"):
        lowbit.push(tiny.backbone("bert"), "me/backbone")
    lowbit.load("me/backbone")  # from the cache
    with pytest.raises(CheckpointError, match="me/other is neither a local folder nor a model on the hub"):
        lowbit.load("me/other")
    with pytest.raises(AdapterError, match="me/other is neither a local folder nor a task adapter on the hub"):
        lowbit.load("me/backbone", adapter="me/other")


def test_a_repository_that_is_no_adapter(hub, tiny):
    lowbit.push(tiny.backbone("bert"), "me/backbone")
    with pytest.raises(AdapterError, match=r"is not a task adapter: task_adapter.json is missing"):
        lowbit.load("me/backbone", adapter="me/backbone")
    assert not any(path.endswith("task_adapter.safetensors") for _, path in hub.requests)


def test_the_backbone_of_a_card_is_compared(hub, tiny):
    lowbit.push(tiny.backbone("bert", seed=1), "me/other")
    with pytest.raises(AdapterError, match=r"was trained on the backbone .*, me/other is .*; name its own backbone"):
        lowbit.push(tiny.adapter("bert"), "me/adapter", backbone="me/other")
    with pytest.raises(AdapterError, match="is no task adapter; `backbone` is for adapters only"):
        lowbit.push(tiny.backbone("bert"), "me/backbone", backbone="me/other")
    assert set(hub.repos) == {"me/other"}


def test_cards_are_what_the_hub_reads(hub, tiny, tmp_path):
    hub.repos.clear()
    source = tmp_path / "cache" / "models--owner--bert" / "snapshots" / "abc"
    shutil.copytree(tiny.model("bert", "BertForMaskedLM"), source)
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: en\ndatasets: [x]\n---\n# BERT\n")
    lowbit.quantize(source, "w4", output=tmp_path / "backbone")
    lowbit.push(tmp_path / "backbone", "me/backbone")
    card = card_of(hub, "me/backbone")
    assert card.data.to_dict() == {
        "language": "en",
        "license": "mit",
        "library_name": "transformers",
        "tags": ["lowbit", "quantized", "4-bit"],
        "base_model": "owner/bert",
        "base_model_relation": "quantized",
        "pipeline_tag": "fill-mask",
    }
    size = lowbit.inspect(tmp_path / "backbone")
    assert "# owner/bert, quantized with lowbit" in card.text
    assert f"{size['effective_bits']:.2f} effective bits" in card.text
    assert f"{size['model_bits']:.2f} bits per parameter" in card.text
    assert "12 x linear: `w4`" in card.text
    assert "modules in float: norm" in card.text
    assert "## Limitations" in card.text
    again = lowbit.save(lowbit.load(tmp_path / "backbone"), tmp_path / "again")
    assert ModelCard.load(again / "README.md").data.to_dict() == card.data.to_dict()


def test_what_is_not_known_is_not_said(tiny):
    for folder in (tiny.backbone("bert"), tiny.merged("bert"), tiny.adapter("bert")):
        data = ModelCard.load(folder / "README.md").data.to_dict()
        assert set(data) == {"library_name", "tags", "pipeline_tag"}
        text = (folder / "README.md").read_text()
        assert str(folder.parent) not in text
        yaml.safe_load(text.split("---")[1])


def test_scores_are_those_of_the_stored_adapter(hub, tiny, tmp_path):
    folder = tmp_path / "adapter"
    result = lowbit.tune(tiny.backbone("bert"), folder, toy_data(), options=options())
    assert read_info(folder).scores == result.metrics
    lowbit.push(folder, "me/adapter")
    assert f"| dev | accuracy | {result.score:.4f} |" in card_of(hub, "me/adapter").text
    merged = lowbit.merge(tiny.backbone("bert"), folder, tmp_path / "merged")
    assert f"| dev | accuracy | {result.score:.4f} |" in (merged / "README.md").read_text()
    record_scores(folder, {"dev": {"pearson": float("nan")}})
    assert json.loads((folder / "task_adapter.json").read_text())["scores"] == {"dev": {"pearson": None}}
    assert "| dev | pearson | not defined |" in (folder / "README.md").read_text()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in tiny.adapter("bert").iterdir()
    )


@pytest.mark.parametrize(
    "text", ["no front matter", "---\na: [\n---\n", "---\n- list\n---\n", "---\n3: x\n---\n", "\udcff"]
)
def test_a_source_with_an_odd_card(tiny, tmp_path, text):
    source = shutil.copytree(tiny.model("bert"), tmp_path / "source")
    (source / "README.md").write_bytes(text.encode("utf-8", "surrogateescape"))
    lowbit.quantize(source, "w4", output=tmp_path / "out")
    assert "license" not in ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()


def test_transformers_own_push(hub, tiny):
    model = AutoModel.from_pretrained(tiny.backbone("bert"))
    model.push_to_hub("me/direct")
    card = card_of(hub, "me/direct")
    assert card.data.tags == ["lowbit", "quantized"]
    assert card.data.library_name == "transformers"
    fetched = checkpoint_folder("me/direct")
    assert lowbit.verify(fetched).fingerprint == lowbit.verify(tiny.backbone("bert")).fingerprint
    assert same(payloads(lowbit.load("me/direct")), payloads(model))
    AutoModelForSequenceClassification.from_pretrained("me/direct", num_labels=3)


def test_transformers_own_push_keeps_the_card(hub, tiny):
    lowbit.push(tiny.backbone("bert"), "me/backbone")
    before = card_of(hub, "me/backbone")
    lowbit.load(tiny.backbone("bert")).push_to_hub("me/backbone")
    assert card_of(hub, "me/backbone").text == before.text
    assert card_of(hub, "me/backbone").data.to_dict() == before.data.to_dict()
    assert same(payloads(lowbit.load("me/backbone")), payloads(lowbit.load(tiny.backbone("bert"))))


def test_old_descriptions_are_refused_by_name(tiny, copy):
    folder = copy(tiny.adapter("bert"))
    edit_json(folder / "task_adapter.json", lambda values: values.update(scores=[1]))
    with pytest.raises(AdapterError, match="damaged: scores is"):
        read_info(folder)
