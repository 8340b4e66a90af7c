import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import SchemeError
from lowbit.scheme import OutlierRule, Scheme


def test_default_is_w4_per_channel_symmetric_mse_half_a_percent():
    scheme = Scheme()
    assert (scheme.bits, scheme.levels, scheme.symmetric, scheme.granularity) == (4, "full", True, "channel")
    assert (scheme.strategy, scheme.options, scheme.outliers) == ("mse", {}, OutlierRule("error", 0.005, None))


@pytest.mark.parametrize("bits", [1, 0, -4, 9, 16, 4.5, 4.0, True, False, "4", None])
def test_bits_outside_2_to_8_are_refused_and_named(bits):
    with pytest.raises(SchemeError, match=f"from 2 to 8, not {bits!r}"):
        Scheme(bits=bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_default_levels_are_midrise_at_2_bits_only(bits):
    assert Scheme(bits=bits).levels == ("midrise" if bits == 2 else "full")
    assert Scheme(bits=bits, symmetric=False).levels == "full"
    assert Scheme(bits=bits, levels="full").offset == 2 ** (bits - 1)
    assert Scheme(bits=bits, levels="midrise").offset == (2**bits - 1) / 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": "half"}, "'half'; use one of full, midrise"),
        ({"levels": "midrise", "symmetric": False}, "use levels `full`"),
        ({"granularity": "row"}, "'row'; use one of tensor, channel, group"),
        ({"granularity": "group"}, "`group_size` is needed"),
        ({"group_size": 64}, "`group_size` is needed"),
        ({"granularity": "group", "group_size": 1}, "from 2, not 1"),
        ({"granularity": "group", "group_size": 64.0}, "not 64.0"),
        ({"granularity": "group", "group_size": "64"}, "not '64'"),
        ({"symmetric": "no"}, "`symmetric` is true or false"),
        ({"options": ["width"]}, "`options` is a mapping"),
        ({"outliers": 0.01}, "`outliers` is an outlier rule .* not 0.01"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_invalid_fields_say_what_is_wrong(fields, message):
    with pytest.raises(SchemeError, match=message):
        Scheme(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "largest"}, "'largest'; use one of tail, magnitude, error, random"),
        ({"share": None}, "exactly one"),
        ({"share": 0.01, "sigma": 3.0}, "exactly one"),
        ({"share": 0.0}, r"outside \(0, 0.5\]"),
        ({"share": 0.51}, "outlier share 0.51"),
        ({"share": -0.1}, "outlier share -0.1"),
        ({"share": float("nan")}, "outlier share nan"),
        ({"share": "1e-3"}, "numbers, not '1e-3'"),
        ({"share": True}, "numbers, not True"),
        ({"share": None, "sigma": 3.0}, "needs the rule `tail`"),
        ({"rule": "tail", "share": None, "sigma": 0.0}, "positive"),
        ({"rule": "tail", "share": None, "sigma": float("nan")}, "positive"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_invalid_outlier_rules_say_what_is_wrong(fields, message):
    with pytest.raises(SchemeError, match=message):
        OutlierRule(**fields)


def test_a_scheme_is_frozen_and_keeps_its_own_options():
    options = {"width": 5.0}
    scheme = Scheme(strategy="sigma", options=options)
    options["width"] = 1.0
    assert scheme.options == {"width": 5.0}
    with pytest.raises(FrozenInstanceError):
        scheme.bits = 3


def test_shape_of_the_step_sizes():
    assert Scheme(granularity="tensor").groups((6, 12)) == (1, 1)
    assert Scheme().groups((6, 12)) == (6, 1)
    assert Scheme(granularity="group", group_size=4).groups((6, 12)) == (6, 3)


def test_group_that_does_not_divide_names_both_numbers():
    with pytest.raises(SchemeError, match="group size 64 does not divide the input width 100; use a divisor of 100"):
        Scheme(granularity="group", group_size=64).groups((8, 100))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w4", Scheme()),
        ("w2", Scheme(bits=2, levels="midrise")),
        ("w8t", Scheme(bits=8, granularity="tensor")),
        ("w3g64", Scheme(bits=3, granularity="group", group_size=64)),
        ("w4o0", Scheme(outliers=None)),
        ("w4o0.0", Scheme(outliers=None)),
        ("w4o1", Scheme(outliers=OutlierRule(share=0.01))),
        ("w4a8", Scheme(activations="dynamic")),
        ("w4a8s", Scheme(activations="static")),
        ("w2a8st", Scheme(bits=2, granularity="tensor", activations="static")),
        ("w2a8g64o0", Scheme(bits=2, granularity="group", group_size=64, outliers=None, activations="dynamic")),
        ("w5to0.25", Scheme(bits=5, granularity="tensor", outliers=OutlierRule(share=0.0025))),
    ],
)
def test_short_form(text, expected):
    assert Scheme.parse(text) == expected
    assert Scheme.parse(str(expected)) == expected


@given(
    bits=st.integers(2, 8),
    activations=st.sampled_from(["", "a8", "a8s"]),
    step=st.sampled_from(["", "t", "g2", "g32", "g128"]),
    hundredths=st.none() | st.integers(0, 5000),
)
def test_short_form_round_trips(bits, activations, step, hundredths):
    text = f"w{bits}{activations}{step}" + ("" if hundredths is None else f"o{hundredths / 100:g}")
    scheme = Scheme.parse(text)
    assert Scheme.parse(str(scheme)) == scheme
    assert str(scheme) == text.removesuffix("o0.5")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "W4",
        "w",
        "w4 ",
        "w4x",
        "w4g",
        "w4g64t",
        "w4o",
        "w4o.5",
        "w4o-1",
        "w4o1%",
        "w4.5",
        "w4a",
        "w4a4",
        "w4s",
        "w4a8d",
        "w4g64a8",
        4,
        None,
        ["w4"],
    ],
)
def test_unreadable_short_form_is_repeated_with_examples(text):
    with pytest.raises(SchemeError, match="as in w4, w3g64 or w2o1") as caught:
        Scheme.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["w1", "w9", "w16", "w4g1", "w4g0", "w4o51"])
def test_short_form_with_values_out_of_range(text):
    with pytest.raises(SchemeError):
        Scheme.parse(text)


RICH = [
    Scheme(bits=3, symmetric=False, strategy="minmax", outliers=None),
    Scheme(levels="midrise", granularity="group", group_size=32),
    Scheme(strategy="sigma", options={"width": 5.0}, outliers=OutlierRule("tail", None, 3.0)),
    Scheme(outliers=OutlierRule("random", 0.01)),
]


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(bits=2), *RICH], ids=str)
def test_dictionary_round_trips_through_json(scheme):
    values = json.loads(json.dumps(scheme.to_dict()))
    assert Scheme.from_dict(values) == scheme
    assert Scheme.parse(values) == scheme
    assert Scheme.parse(scheme) is scheme


def test_str_adds_what_the_short_form_cannot_say():
    assert list(map(str, RICH)) == [
        "w3o0 (asymmetric, minmax)",
        "w4g32 (midrise)",
        "w4 (sigma, width=5.0, tail, 3 sigma)",
        "w4o1 (random)",
    ]


def test_unknown_keys_are_refused_with_the_known_ones():
    with pytest.raises(SchemeError, match="unknown scheme key 'bit'; known keys: bits, levels"):
        Scheme.from_dict({"bit": 4})
    with pytest.raises(SchemeError, match="unknown outlier rule key 'percent'; known keys: rule, share, sigma"):
        Scheme.from_dict({"outliers": {"percent": 1}})


def test_replace_checks_again():
    with pytest.raises(SchemeError):
        replace(Scheme(), bits=9)


def test_with_bits_follows_default_levels_only():
    assert Scheme(bits=4).with_bits(2) == Scheme(bits=2)
    assert Scheme(bits=2).with_bits(4) == Scheme(bits=4)
    assert Scheme(bits=4, levels="midrise").with_bits(3) == Scheme(bits=3, levels="midrise")


def test_a_spread_over_the_model_needs_errors():
    with pytest.raises(SchemeError, match="use the rule `error`"):
        OutlierRule(rule="tail", spread="model")
    with pytest.raises(SchemeError, match="unknown spread 'layer'"):
        OutlierRule(spread="layer")
    assert str(Scheme(outliers=OutlierRule(spread="model"))) == "w4 (outliers spread over the model)"
