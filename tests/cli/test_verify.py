import json

import pytest

import lowbit


@pytest.fixture
def backbone(bert, tmp_path):
    return lowbit.quantize(bert, output=tmp_path / "backbone").path


def test_whole(run, backbone):
    found = lowbit.verify(backbone)
    result = run("verify", backbone)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{backbone}: whole; {found.tensors} tensors")
    assert found.fingerprint[:12] in result.stdout


def test_every_directory_is_looked_at(run, backbone, tmp_path):
    result = run("verify", tmp_path / "none", backbone)
    assert result.exit_code == 2
    assert f"{backbone}: whole" in result.stdout
    assert result.stderr.startswith("error: ")


def test_json_of_a_whole_and_a_damaged_directory(run, bert, backbone, tmp_path):
    damaged = lowbit.quantize(bert, output=tmp_path / "damaged").path
    file = damaged / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    result = run("verify", backbone, damaged, "--json")
    whole, broken = json.loads(result.stdout)
    assert result.exit_code == 2
    assert (whole["path"], whole["ok"]) == (str(backbone), True)
    assert (broken["path"], broken["ok"]) == (str(damaged), False)
    assert "does not match its checksum" in broken["error"]
