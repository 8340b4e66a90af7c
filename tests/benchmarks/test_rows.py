import json

from rows import append, done, read_rows

from lowbit import __version__


def test_a_row_is_appended_with_date_and_versions_and_is_found_by_its_key(tmp_path):
    path = tmp_path / "results" / "x.jsonl"
    assert not done(path, {"scheme": "w4"}, ("scheme",))
    append(path, {"scheme": "w4", "loss": 1.0})
    append(path, {"scheme": "w3", "loss": 2.0})
    rows = read_rows(path)
    assert [row["scheme"] for row in rows] == ["w4", "w3"]
    assert rows[0]["lowbit"] == __version__
    assert {"date", "torch", "transformers"} < set(rows[0])
    assert done(path, {"scheme": "w4", "loss": 9.0}, ("scheme",))
    assert not done(path, {"scheme": "w4", "loss": 9.0}, ("scheme", "loss"))


def test_a_missing_value_of_the_key_matches_none_only(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"label": "nf4", "version": None}) + "\n")
    assert done(path, {"label": "nf4"}, ("label", "version"))
    assert not done(path, {"label": "nf4", "version": "1"}, ("label", "version"))
