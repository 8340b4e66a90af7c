import re
import sys

import pytest

from lowbit.data import GLUE, get_task, load_glue
from lowbit.errors import DataError, MissingExtraError

MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label"
)
NLI_HEADER = "index\tsentence1\tsentence2\tlabel"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("LOWBIT_DATA", raising=False)


@pytest.fixture
def put(tmp_path):
    """Writes one official file, given as lines, and returns the data folder."""

    def write(task, name, *lines, end="\n"):
        path = tmp_path / GLUE[task].folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
        return tmp_path

    return write


REAL = [
    ("SST-2", "train", 67_349, 37_569),
    ("SST-2", "dev", 872, 444),
    ("CoLA", "train", 8_551, 6_023),
    ("CoLA", "dev", 1_043, 721),
    ("STS-B", "train", 5_749, None),
    ("STS-B", "dev", 1_500, None),
    ("QNLI", "train", 8_999, None),
    ("QNLI", "dev", 5_463, None),
    ("MNLI", "train", 8_999, None),
    ("MNLI", "dev", 1_000, None),
    ("QQP", "train", 8_999, None),
    ("QQP", "dev", 1_000, None),
]


@pytest.mark.parametrize(("name", "split", "rows", "ones"), REAL)
def test_real_files(data_dir, name, split, rows, ones):
    examples = load_glue(name, split, data_dir)
    task = get_task(name)
    assert len(examples) == rows
    assert examples.label_names == task.labels
    assert (examples.pairs is None) == (task.text_pair is None)
    if task.labels is None:
        assert (min(examples.labels), max(examples.labels)) == (0.0, 5.0)
    else:
        assert set(examples.labels) == set(range(len(task.labels)))
    if ones is not None:
        assert sum(examples.labels) == ones


def test_first_real_rows(data_dir):
    sst2 = load_glue("sst2", "dev", data_dir)
    assert (sst2.texts[0], sst2.labels[0]) == ("it 's a charming and often affecting journey . ", 1)
    stsb = load_glue("stsb", "dev", data_dir)
    assert (stsb.texts[0], stsb.pairs[0], stsb.labels[0]) == (
        "A man with a hard hat is dancing.",
        "A man wearing a hard hat is dancing.",
        5.0,
    )
    mnli = load_glue("mnli", "dev_matched", data_dir)
    assert (mnli.texts[0], mnli.pairs[0], mnli.labels[0]) == (
        "Salt kept the town fed.",
        "Salt kept the town thriving.",
        0,
    )


def test_official_mrpc_train(put):
    root = put("mrpc", "train.tsv", MRPC_HEADER, '1\t70\t72\tHe said "no.\tHe refused.', end="\r\n")
    examples = load_glue("mrpc", "train", root)
    assert (examples.texts, examples.pairs, examples.labels) == (['He said "no.'], ["He refused."], [1])


def test_microsofts_mrpc_file_without_the_dev_rows(put):
    put("mrpc", "dev.tsv", MRPC_HEADER, "0\t3\t4\tc\td")
    root = put("mrpc", "msr_paraphrase_train.txt", MRPC_HEADER, "1\t1\t2\ta\tb", "0\t3\t4\tc\td", "0\t5\t6\tc\te")
    examples = load_glue("mrpc", "train", root)
    assert list(zip(examples.texts, examples.pairs, examples.labels, strict=True)) == [
        ("a", "b", 1),
        ("c", "e", 0),
    ]
    (root / "MRPC" / "dev.tsv").unlink()
    with pytest.raises(DataError, match="mrpc: no dev file"):
        load_glue("mrpc", "train", root)


def test_official_rte(put):
    root = put("rte", "dev.tsv", NLI_HEADER, "0\ta\tb\tnot_entailment", "1\tc\td\tentailment")
    examples = load_glue("RTE", "dev", root)
    assert (examples.texts, examples.pairs, examples.labels) == (["a", "c"], ["b", "d"], [1, 0])


@pytest.mark.parametrize("split", ["train", "dev_matched", "dev_mismatched"])
def test_official_mnli(put, split):
    filler = "0\t1\t2\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)"
    lines = [f"{filler}\ta\tb\tneutral\t{label}" for label in ("contradiction", "entailment", "neutral")]
    examples = load_glue("mnli", split, put("mnli", f"{split}.tsv", MNLI_HEADER, *lines))
    assert (examples.texts, examples.pairs, examples.labels) == (["a"] * 3, ["b"] * 3, [2, 0, 1])


def test_official_qqp(put):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    root = put("qqp", "train.tsv", header, "5\t1\t2\tWhy?\t\t0", "6\t3\t4\tHow?\tHow so?\t1")
    examples = load_glue("qqp", "train", root)
    assert (examples.texts, examples.pairs, examples.labels) == (["Why?", "How?"], ["", "How so?"], [0, 1])
    root = put("qqp", "train.tsv", header, "6\t3\t4\tHow?\tHow so?\t1", "7\t5\t6\tcut off")
    with pytest.raises(DataError, match=r"train\.tsv:3: 4 columns instead of 6; mend or delete this line"):
        load_glue("qqp", "train", root)


@pytest.mark.parametrize(
    ("task", "lines", "message"),
    [
        ("rte", [], "dev.tsv: the file is empty"),
        ("rte", [NLI_HEADER], "dev.tsv: no row after the header"),
        (
            "rte",
            ["index\tsentence1\tsentence2", "0\ta\tb"],
            "dev.tsv:1: the header names column 'label' 0 times",
        ),
        (
            "rte",
            [NLI_HEADER, "0\ta\tb\tneutral"],
            "dev.tsv:2: label 'neutral' is not one of entailment, not_entail",
        ),
        (
            "rte",
            [NLI_HEADER, "0\ta\tb\tentailment", "", "1\ta\tb\tentailment"],
            "dev.tsv:3: 1 columns instead of 4",
        ),
        ("sst2", ["sentence\tlabel", "fine\t1", "bad\t-1"], "dev.tsv:3: label '-1' is not one of 0, 1"),
        ("cola", ["gj04\t1\t\tFine.", "gj04\t*\tBad."], "dev.tsv:2: 3 columns instead of 4"),
        ("cola", ["gj04\t2\t\tFine."], "dev.tsv:1: label '2' is not one of 0, 1"),
        (
            "stsb",
            ["sentence1\tsentence2\tscore", "a\tb\t5.1"],
            "dev.tsv:2: '5.1' is not a number from 0 to 5",
        ),
        (
            "stsb",
            ["sentence1\tsentence2\tscore", "a\tb\t-0.1"],
            "dev.tsv:2: '-0.1' is not a number from 0 to 5",
        ),
        (
            "stsb",
            ["sentence1\tsentence2\tscore", "a\tb\tnan"],
            "dev.tsv:2: 'nan' is not a number from 0 to 5",
        ),
        (
            "stsb",
            ["sentence1\tsentence2\tscore", "a\tb\tfive"],
            "dev.tsv:2: 'five' is not a number from 0 to 5",
        ),
    ],
)
def test_bad_files_are_named_by_line(put, task, lines, message):
    with pytest.raises(DataError, match=re.escape(message)):
        load_glue(task, "dev", put(task, "dev.tsv", *lines))


@pytest.mark.parametrize("inside", [".", "glue"])
@pytest.mark.parametrize("by_environment", [False, True])
def test_finds_the_folder(monkeypatch, tmp_path, inside, by_environment):
    folder = tmp_path / inside / "SST-2"
    folder.mkdir(parents=True)
    (folder / "dev.tsv").write_text("sentence\tlabel\ngood\t1\n")
    if by_environment:
        monkeypatch.setenv("LOWBIT_DATA", str(tmp_path))
    examples = load_glue("sst2", "dev", None if by_environment else str(tmp_path))
    assert (examples.texts, examples.labels, examples.source) == (["good"], [1], str(folder / "dev.tsv"))


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_given_folder_without_the_task_is_an_error(monkeypatch, tmp_path, by_environment):
    monkeypatch.setattr("lowbit.data.glue._from_hub", lambda *_: pytest.fail("asked the hub"))
    tried = f"{tmp_path / 'RTE' / 'dev.tsv'}, {tmp_path / 'glue' / 'RTE' / 'dev.tsv'}"
    if by_environment:
        monkeypatch.setenv("LOWBIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=re.escape(f"rte: no dev file; tried {tried};")):
        load_glue("rte", "dev", None if by_environment else tmp_path)


@pytest.mark.parametrize("name", ["SST-2", "sst2", "sst_2", "Sst-2"])
def test_task_names(name):
    assert get_task(name) is GLUE["sst2"]


def test_unknown_task_and_split(tmp_path):
    with pytest.raises(DataError, match="unknown GLUE task 'wnli'; use one of cola, sst2, mrpc, stsb, qqp"):
        get_task("wnli")
    with pytest.raises(DataError, match="rte: no split 'test' with labels; use one of train, dev"):
        load_glue("rte", "test", tmp_path)
    with pytest.raises(DataError, match=r"mnli: no split 'validation' with labels; use .*dev_mismatched"):
        load_glue("mnli", "validation", tmp_path)


def test_tasks():
    assert list(GLUE) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    for task in GLUE.values():
        assert task.primary in task.metrics
        assert (task.labels is None) == (task.stored is None)
        assert task.labels is None or len(task.labels) == len(task.stored)
        assert (task.text_pair is None) == (task.hub_pair is None)
    assert {task.name: task.primary for task in GLUE.values() if task.primary != "accuracy"} == {
        "cola": "matthews",
        "stsb": "spearman",
    }


def hub(monkeypatch, names, columns):
    """Puts one in-memory data set on the hub and returns what was asked for."""
    datasets = pytest.importorskip("datasets")
    asked = []
    label = datasets.Value("float32") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features({name: datasets.Value("string") for name in columns} | {"label": label})
    data = datasets.Dataset.from_dict(columns | {"label": [1, 0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or data)
    return asked


def test_hub_where_no_folder_is_given(monkeypatch):
    names = ["entailment", "neutral", "contradiction"]
    asked = hub(monkeypatch, names, {"premise": ["a", "b"], "hypothesis": ["c", "d"]})
    examples = load_glue("mnli", "dev")
    assert asked == [(("nyu-mll/glue", "mnli"), {"split": "validation_matched"})]
    assert (examples.texts, examples.pairs, examples.labels) == (["a", "b"], ["c", "d"], [1, 0])
    assert (examples.label_names, examples.source) == (tuple(names), "nyu-mll/glue/mnli/dev_matched")


def test_hub_regression_and_single_texts(monkeypatch):
    hub(monkeypatch, None, {"sentence1": ["a", "b"], "sentence2": ["c", "d"]})
    examples = load_glue("stsb", "train")
    assert (examples.labels, examples.label_names) == ([1.0, 0.0], None)
    hub(monkeypatch, ["negative", "positive"], {"sentence": ["a", "b"]})
    assert load_glue("sst2", "train").pairs is None


@pytest.mark.parametrize("names", [["positive", "negative"], None])
def test_hub_with_other_labels_is_refused(monkeypatch, names):
    hub(monkeypatch, names, {"sentence": ["a", "b"]})
    with pytest.raises(DataError, match="the hub's labels are"):
        load_glue("sst2", "dev")


def test_hub_out_of_reach(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"nyu-mll/glue/rte/dev: .*\(offline\).*LOWBIT_DATA"):
        load_glue("rte", "dev")


def test_hub_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lowbit\[data\]'"):
        load_glue("rte", "dev")
