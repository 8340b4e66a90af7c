from lowbit.cli.layers import group_layers, layer_order, split_name, tree

NAMES = ["shared", "e.0.a", "e.1.a", "d.0.a", "e.0.b.c", "e.1.b.c", "e.2.b.c", "d.0.layer.1.x", "e.3.b.c"]


def groups(names, alike=lambda name: None):
    return group_layers(names, str, alike)


def test_layers_in_a_row_share_a_group():
    found = groups(NAMES)
    assert found == [
        ["shared"],
        ["e.0.a", "e.1.a"],
        ["d.0.a"],
        ["e.0.b.c", "e.1.b.c", "e.2.b.c", "e.3.b.c"],
        ["d.0.layer.1.x"],
    ]


def test_a_layer_that_differs_or_is_missing_divides():
    assert groups(["e.0.a", "e.1.a", "e.2.a"], lambda name: "1" in name) == [["e.0.a"], ["e.1.a"], ["e.2.a"]]
    assert groups(["e.0.a", "e.2.a"]) == [["e.0.a"], ["e.2.a"]]


def test_names_are_split_at_the_layer():
    assert split_name(["shared"]) == ("", "shared")
    assert split_name(["e.3.b.c"]) == ("e.3", "b.c")
    assert split_name(["e.9.b.c", "e.10.b.c"]) == ("e.9-10", "b.c")


def test_layers_come_one_after_another():
    assert layer_order(["e.10.a", "e.9.b", "shared", "d.0.a", "e.9.a"], str) == [
        "e.9.b",
        "e.9.a",
        "e.10.a",
        "shared",
        "d.0.a",
    ]


def test_a_tree_names_its_layers_once():
    rows = tree(
        groups(["shared", "e.0.a", "e.1.a", "e.0.b", "e.1.b"]), str, lambda name, group: {"n": name, "of": len(group)}
    )
    assert rows == [
        {"n": "shared", "of": 1},
        {"n": "e.0-1", "of": None},
        {"n": "  a", "of": 2},
        {"n": "  b", "of": 2},
    ]
