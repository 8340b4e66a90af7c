import json
from pathlib import Path

import pytest

import lowbit
from lowbit import ZeroShotOptions
from lowbit.zeroshot import METHODS, ZeroShotResult, parse_recipe

RECORD = ({"step": 1, "loss": 0.5, "sharpness": 0.1}, {"step": 2, "loss": 0.4, "sharpness": 0.1, "gap": 0.25})


@pytest.fixture
def calls(monkeypatch):
    found = []

    def zeroshot(model, output, recipe, *, method="zsaq", texts=None, options, progress=None):
        found.append((model, output, recipe, method, texts, options))
        progress(1, 2, "loss 1")
        counts = {"descents": 2, "skipped_descents": 1 if method == "no-sam" else 0}
        steps = 0 if method == "no-sga" else 2
        return ZeroShotResult(Path(output), method, str(recipe.scheme), 0.5, 0.25, steps, 1.5, counts, RECORD)

    monkeypatch.setattr(lowbit, "zeroshot", zeroshot)
    return found


def test_defaults_are_those_of_the_function(run, calls):
    result = run("zeroshot", "model", "-o", "out")
    assert result.exit_code == 0
    assert calls == [("model", Path("out"), parse_recipe("w4a8"), "zsaq", None, ZeroShotOptions())]
    assert result.stdout.splitlines() == [
        "distance to the teacher on generated texts: 0.5 quantized, 0.25 after 2 steps of zsaq",
        "out written in 1.5 s",
        "next: lowbit inspect out",
    ]


def test_every_option_is_passed_on(run, calls, tmp_path):
    (tmp_path / "texts").write_text("one\ntwo words\n")
    flags = f"--method real --texts {tmp_path / 'texts'} --scheme w2a8o1 --strategy minmax --levels full --embeddings 4"
    flags += " --generator there --steps 7 --batch-size 4 --lengths 3 9 --pairs 0.5 --candidates 5 --learning-rate 0.1"
    flags += " --warmup 0.2 --schedule cosine --temperature 2 --hidden 0.5 --rho 0.3 --relative --adaptive --per-tensor"
    flags += " --perturb latent --generator-rate 0.01 --ratio 3 --diversity 0.2 --evaluate-steps 4 --patience 2"
    flags += " --checkpointing --precision fp32 --save-steps 6 --seed 9"
    assert run("zeroshot", "model", "-o", "out", *flags.split()).exit_code == 0
    ((_, _, recipe, method, texts, options),) = calls
    assert (method, texts) == ("real", ["one", "two words"])
    assert (recipe.scheme.bits, recipe.scheme.strategy, recipe.scheme.levels) == (2, "minmax", "full")
    assert (recipe.scheme.outliers.share, recipe.embeddings.bits) == (0.01, 4)
    assert options == ZeroShotOptions(
        steps=7,
        batch_size=4,
        lengths=(3, 9),
        pairs=0.5,
        generator="there",
        candidates=5,
        learning_rate=0.1,
        warmup=0.2,
        schedule="cosine",
        temperature=2.0,
        hidden=0.5,
        rho=0.3,
        relative=True,
        adaptive=True,
        per_tensor=True,
        perturb="latent",
        generator_rate=0.01,
        ratio=3,
        diversity=0.2,
        evaluate_steps=4,
        patience=2,
        checkpointing=True,
        precision="fp32",
        save_steps=6,
        seed=9,
    )


def test_pairs_are_parted_by_a_tab(run, calls, tmp_path):
    (tmp_path / "pairs").write_text("one\ttwo\nthree\tfour\n")
    assert run("zeroshot", "model", "-o", "out", "--method", "real", "--texts", tmp_path / "pairs").exit_code == 0
    assert calls[0][4] == [("one", "two"), ("three", "four")]


def test_a_recipe_file_says_all(run, calls, tmp_path):
    (tmp_path / "recipe.yaml").write_text("scheme: w3\n")
    assert run("zeroshot", "model", "-o", "out", "--recipe", tmp_path / "recipe.yaml").exit_code == 0
    assert (calls[0][2].scheme.bits, calls[0][2].scheme.outliers.share) == (3, 0.005)
    result = run("zeroshot", "model", "-o", "out", "--recipe", tmp_path / "recipe.yaml", "--scheme", "w2")
    assert (result.exit_code, "goes into the recipe file" in result.stderr) == (2, True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_named(run, calls, method):
    assert run("zeroshot", "model", "-o", "out", "--method", method).exit_code == 0
    assert calls[0][3] == method


def test_what_went_wrong_is_said(run, calls):
    assert "1 steps were skipped" in run("zeroshot", "model", "-o", "out", "--method", "no-sam").stdout
    assert "nothing was changed" in run("zeroshot", "model", "-o", "out", "--method", "no-sga").stdout


def test_json(run, calls):
    result = run("zeroshot", "model", "-o", "out", "--scheme", "w2a8", "--json")
    values = json.loads(result.stdout)
    assert (values["scheme"], values["start_gap"], values["gap"], values["end_loss"]) == ("w2a8o0", 0.5, 0.25, 0.4)
    assert values["record"] == list(RECORD)


def test_a_real_run_and_its_errors(run, tiny, tmp_path):
    flags = ["--scheme", "w2a8s", "--steps", "2", "--batch-size", "4", "--lengths", "2", "6", "--candidates", "4"]
    flags += ["--precision", "fp32", "--learning-rate", "0.005"]
    result = run("zeroshot", tiny.model("bert"), "-o", tmp_path / "out", *flags)
    assert (result.exit_code, "after 2 steps of zsaq" in result.stdout) == (0, True)
    result = run("zeroshot", tiny.model("bert"), "-o", tmp_path / "out", *flags)
    assert (result.exit_code, result.stderr.startswith("error: ")) == (2, True)
    result = run("zeroshot", tiny.model("bert"), "-o", tmp_path / "other", *flags, "--learning-rate", "50")
    assert (result.exit_code, "error: step 2: the distance to the teacher has grown" in result.stderr) == (2, True)


def test_an_option_that_the_method_has_no_use_for_is_refused(run, tmp_path):
    for flags in ("--method random --rho 0.1", "--method no-sga --ratio 2", "--method rtn --steps 5"):
        result = run("zeroshot", "./nowhere", "-o", tmp_path / "out", *flags.split())
        _, method, flag, _ = flags.split()
        message = f"error: the method '{method}' has no use for {flag}; leave it out"
        assert (result.exit_code, result.stderr.strip()) == (2, message)
