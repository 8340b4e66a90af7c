import fnmatch

import huggingface_hub
import pytest

from lowbit.checkpoint import atomic_directory, checkpoint_folder, copy_side_files, refuse_existing, weight_files
from lowbit.errors import CheckpointError, OutputExistsError


def test_directory_appears_whole(tmp_path):
    target = tmp_path / "deep" / "out"
    with atomic_directory(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
        assert partial.name.startswith(".out.partial-")
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert (target / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path, error):
    def fail():
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused_before_and_after(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(OutputExistsError, match="out exists already; choose another output"), atomic_directory(target):
        pytest.fail("must not start")
    target.rmdir()

    def race():
        with atomic_directory(target) as partial:
            (partial / "a").write_text("mine")
            target.mkdir()
            (target / "b").write_text("theirs")

    with pytest.raises(OutputExistsError):
        race()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["b"]


def test_files_and_dangling_links_count_as_existing(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(OutputExistsError, match=name):
            refuse_existing(tmp_path / name)
    assert refuse_existing(tmp_path / "free") == tmp_path / "free"


def test_left_overs_of_a_killed_process_are_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)
    stale = tmp_path / ".out.partial-7"
    stale.mkdir()
    (stale / "old").write_text("x")
    with atomic_directory(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_side_files_are_copied_and_nothing_else(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    for name in ("tokenizer.json", "vocab.txt", "generation_config.json", "optimizer.pt", "config.json"):
        (source / name).write_text(name)
    copy_side_files(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["generation_config.json", "tokenizer.json", "vocab.txt"]


def test_weight_files(tmp_path):
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    shards = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for path in shards:
        path.touch()
    assert weight_files(tmp_path) == shards
    (tmp_path / "model.safetensors").touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "owner/not-in-the-cache", "not a name!"])
def test_what_is_no_model(name):
    with pytest.raises(CheckpointError, match=name):
        checkpoint_folder(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(CheckpointError, match="not a model folder"):
        checkpoint_folder(tmp_path / "x")
    assert checkpoint_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("stored", ["model.safetensors", "model-00001-of-00001.safetensors", "pytorch_model.bin"])
def test_bin_files_are_fetched_only_where_there_are_no_safetensors(tmp_path, monkeypatch, stored):
    """A stand-in for the hub, whose repository also has the weights of other frameworks."""
    fetched = []

    def fetch(name, allow_patterns):
        (tmp_path / name).mkdir(exist_ok=True)
        others = ["config.json", "vocab.txt", "pytorch_model.bin", "training_args.bin", "tf_model.h5", "onnx/model.bin"]
        for file in {stored, *others}:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                fetched.append(file)
                (tmp_path / name / file).touch()
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert checkpoint_folder("model") == tmp_path / "model"
    assert sorted(fetched) == sorted({"config.json", "vocab.txt", stored})
