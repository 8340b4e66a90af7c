import xml.etree.ElementTree as ElementTree

from lowbit.bench import draw


def row(peer, workload, ratio):
    return {"peer": peer, "workload": workload, "ratio": ratio}


def test_the_fastest_peer_is_on_top_and_rows_without_a_ratio_are_left_out():
    rows = [row("slow", "a", 0.5), row("a&b", "a", 3.0), row("slow", "b", 4.0), {"peer": "absent", "absent": "x"}]
    texts = [node.text for node in ElementTree.fromstring(draw(rows)).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.index("a&b") < texts.index("slow")
    assert "absent" not in texts
    assert {"0.5", "1", "2"} <= set(texts)


def test_no_rows():
    assert ElementTree.fromstring(draw([])) is not None
