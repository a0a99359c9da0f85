"""Domains, options and components: exact outcomes and the exact words of every refusal."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lesionseg.config import SETTINGS
from lesionseg.errors import InputError
from lesionseg.registry import FAMILIES
from lesionseg.space import Categorical, ComponentConfig, Float, Int, RegistryEntry, build, lookup

LR = Float(1e-5, 1e-1, default=1e-3, log=True)
SHARE = Float(-1.0, 1.0, default=0.25)
EPOCHS = Int(1, 100, default=40)
WIDTH = Int(4, 64, default=16, log=True)
EVEN = Int(2, 10, default=4, step=2)
ENCODER = Categorical(("resnet18", "resnet34", "mit_b0"), default="resnet34")
MIXED = Categorical((1, 1.5, True, "1"), default="1")


def refusal(domain, value, method="check"):
    with pytest.raises(InputError) as caught:
        getattr(domain, method)(value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("domain", "value", "checked"),
    [
        (LR, 1e-5, 1e-5),
        (LR, 1e-1, 1e-1),
        # YAML 1.1 reads 1e-4 as a string.
        (LR, "1e-4", 1e-4),
        (LR, " 0.01 ", 0.01),
        (SHARE, 1, 1.0),
        (SHARE, -1, -1.0),
        (SHARE, 0, 0.0),
        (EPOCHS, 1, 1),
        (EPOCHS, 100, 100),
        (EPOCHS, 7.0, 7),
        (EPOCHS, "7", 7),
        (EPOCHS, "1e1", 10),
        (EVEN, 2, 2),
        (EVEN, 8, 8),
        (ENCODER, "mit_b0", "mit_b0"),
        (MIXED, 1, 1),
        (MIXED, 1.5, 1.5),
        (MIXED, True, True),
        (MIXED, "1", "1"),
    ],
)
def test_valid_values_are_converted(domain, value, checked):
    result = domain.check(value)
    assert result == checked
    assert type(result) is type(checked)


@pytest.mark.parametrize(
    ("domain", "value", "message"),
    [
        (LR, 0.5, "must lie in [1e-05, 0.1], got 0.5"),
        (LR, 0, "must lie in [1e-05, 0.1], got 0"),
        # Just outside: the number is shown with enough digits to see that it is.
        (LR, 0.10000001, "must lie in [1e-05, 0.1], got 0.10000001"),
        (LR, "0.2", "must lie in [1e-05, 0.1], got 0.2"),
        (LR, math.nan, "must be finite, got nan"),
        (LR, math.inf, "must be finite, got inf"),
        (LR, "-inf", "must be finite, got '-inf'"),
        (LR, ".1e", "must be a number, got '.1e'"),
        (LR, "", "must be a number, got ''"),
        (LR, None, "must be a number, got None"),
        (LR, [0.01], "must be a number, got [0.01]"),
        (LR, {"low": 1}, "must be a number, got {'low': 1}"),
        (SHARE, True, "must be a number, got True"),
        (SHARE, False, "must be a number, got False"),
        (EPOCHS, 0, "must lie in [1, 100], got 0"),
        (EPOCHS, 101, "must lie in [1, 100], got 101"),
        (EPOCHS, -3.0, "must lie in [1, 100], got -3"),
        (EPOCHS, 1.5, "must be a whole number, got 1.5"),
        (EPOCHS, "2.5", "must be a whole number, got '2.5'"),
        (EPOCHS, True, "must be a number, got True"),
        (EPOCHS, math.nan, "must be finite, got nan"),
        (EVEN, 3, "must be 2 plus a multiple of 2, got 3"),
        (EVEN, 11, "must lie in [2, 10], got 11"),
        (ENCODER, "resnet43", "must be one of its choices, got 'resnet43' (did you mean 'resnet34'?)"),  # noqa: E501
        (ENCODER, "vgg", "must be one of its choices, got 'vgg' (known: mit_b0, resnet18, resnet34)"),  # noqa: E501
        (ENCODER, None, "must be one of its choices, got None (known: mit_b0, resnet18, resnet34)"),
        (ENCODER, ["mit_b0"], "must be one of its choices, got ['mit_b0'] (did you mean 'mit_b0'?)"),  # noqa: E501
    ],
)  # fmt: skip
def test_invalid_values_are_refused(domain, value, message):
    assert refusal(domain, value) == message


def test_a_number_too_large_for_a_float_is_refused_like_any_other():
    assert refusal(LR, 10**400).startswith("must be a number, got 1000")


@pytest.mark.parametrize("value", [1.0, "1.5", False])
def test_a_choice_is_only_taken_in_its_own_type(value):
    assert "must be one of its choices" in refusal(MIXED, value)


@pytest.mark.parametrize(
    ("domain", "bounds", "narrowed"),
    [
        (LR, [1e-4, 1e-2], Float(1e-4, 1e-2, default=1e-3, log=True)),
        # The default moves to the nearest end of the narrower range.
        (LR, ["1e-2", "5e-2"], Float(1e-2, 5e-2, default=1e-2, log=True)),
        (LR, [1e-5, 1e-4], Float(1e-5, 1e-4, default=1e-4, log=True)),
        (SHARE, [0, 0], Float(0.0, 0.0, default=0.0)),
        (WIDTH, [8, 16], Int(8, 16, default=16, log=True)),
        (WIDTH, [4, 8], Int(4, 8, default=8, log=True)),
        (WIDTH, [32, 64], Int(32, 64, default=32, log=True)),
        (EVEN, [4, 8], Int(4, 8, default=4, step=2)),
        (EVEN, [6, 6], Int(6, 6, default=6, step=2)),
        (ENCODER, ["mit_b0"], Categorical(("mit_b0",), default="mit_b0")),
        (ENCODER, ["mit_b0", "resnet34"], Categorical(("mit_b0", "resnet34"), default="resnet34")),
        (ENCODER, ["mit_b0", "resnet18"], Categorical(("mit_b0", "resnet18"), default="mit_b0")),
    ],
)
def test_narrowing(domain, bounds, narrowed):
    assert domain.narrow(bounds) == narrowed


@pytest.mark.parametrize(
    ("domain", "bounds", "message"),
    [
        (LR, [1e-6, 1e-2], "must lie in [1e-05, 0.1], got 1e-06"),
        (LR, [1e-4, 1.0], "must lie in [1e-05, 0.1], got 1"),
        (LR, [1e-2, 1e-4], "must have low <= high, got [0.01, 0.0001]"),
        (LR, [1e-4], "must be a value or [low, high], got [0.0001]"),
        (LR, [1e-4, 1e-3, 1e-2], "must be a value or [low, high], got [0.0001, 0.001, 0.01]"),
        (LR, [], "must be a value or [low, high], got []"),
        (LR, {"low": 1e-4}, "must be a value or [low, high], got {'low': 0.0001}"),
        (LR, [1e-4, None], "must be a number, got None"),
        (LR, [math.nan, 1e-2], "must be finite, got nan"),
        (WIDTH, [2, 8], "must lie in [4, 64], got 2"),
        (WIDTH, [16, 8], "must have low <= high, got [16, 8]"),
        (WIDTH, [8, 8.5], "must be a whole number, got 8.5"),
        (EVEN, [3, 8], "must be 2 plus a multiple of 2, got 3"),
        (ENCODER, [], "must be a value or a list of values, got []"),
        (ENCODER, {"mit_b0": {}}, "must be a value or a list of values, got {'mit_b0': {}}"),
        (ENCODER, ["mit_b0", "mit_b0"], "names a choice twice: ['mit_b0', 'mit_b0']"),
        (ENCODER, ["mit_b1"], "must be one of its choices, got 'mit_b1' (did you mean 'mit_b0'?)"),
    ],
)
def test_invalid_narrowing_is_refused(domain, bounds, message):
    assert refusal(domain, bounds, "narrow") == message


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats())
def test_a_narrowed_range_takes_what_both_ranges_take(a, b, value):
    low, high = sorted((a, b))
    narrow = SHARE.narrow([low, high])
    assert low <= narrow.default <= high
    if low <= value <= high:
        assert narrow.check(value) == SHARE.check(value)
    else:
        refusal(narrow, value)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(-3, 15))
def test_a_narrowed_stepped_range_keeps_to_its_steps(a, b, value):
    low, high = sorted((2 * a, 2 * b))
    narrow = EVEN.narrow([low, high])
    assert narrow.check(narrow.default) == narrow.default
    if value in range(low, high + 1, 2):
        assert narrow.check(value) == value
    else:
        refusal(narrow, value)


@pytest.mark.parametrize(
    ("domain", "extremes", "text"),
    [
        (LR, (1e-5, 1e-1), "1e-05 .. 0.1 log"),
        (SHARE, (-1.0, 1.0), "-1 .. 1"),
        (WIDTH, (4, 64), "4 .. 64 log"),
        (EVEN, (2, 10), "2 .. 10 step 2"),
        (ENCODER, ("resnet18", "resnet34", "mit_b0"), "resnet18 | resnet34 | mit_b0"),
    ],
)
def test_extremes_and_text(domain, extremes, text):
    assert domain.extremes() == extremes
    assert str(domain) == text


def the_row(**given):
    return given


OPTION = RegistryEntry(the_row, {"lr": LR, "encoder": ENCODER}, "for the tests")


@pytest.mark.parametrize(
    ("params", "resolved"),
    [
        ({}, {"lr": 1e-3, "encoder": "resnet34"}),
        ({"lr": "1e-2"}, {"lr": 1e-2, "encoder": "resnet34"}),
        ({"encoder": "mit_b0", "lr": 0.1}, {"lr": 0.1, "encoder": "mit_b0"}),
    ],
)
def test_an_entry_fills_in_what_is_not_given(params, resolved):
    assert OPTION.resolve(params) == resolved


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lrr": 0.1}, "unknown parameter 'lrr' (did you mean 'lr'?)"),
        ({"momentum": 0.1}, "unknown parameter 'momentum' (known: encoder, lr)"),
        ({"lr": 1.0}, "lr must lie in [1e-05, 0.1], got 1"),
        ({"encoder": 3}, "encoder must be one of its choices, got 3 (known: mit_b0, resnet18, resnet34)"),  # noqa: E501
    ],
)  # fmt: skip
def test_an_entry_refuses_what_it_does_not_take(params, message):
    with pytest.raises(InputError) as caught:
        OPTION.resolve(params)
    assert str(caught.value) == message


TABLE = {"one": OPTION, "other": RegistryEntry(lambda first, **_: first)}


def test_lookup_finds_a_row_and_names_the_nearest_of_an_unknown_one():
    assert lookup("loss", TABLE, "one") is OPTION
    with pytest.raises(InputError, match=r"^unknown loss 'othr' \(did you mean 'other'\?\)$"):
        lookup("loss", TABLE, "othr")
    with pytest.raises(InputError, match=r"^unknown loss 'dice' \(known: one, other\)$"):
        lookup("loss", TABLE, "dice")


def test_build_passes_family_arguments_and_parameters():
    assert build("x", TABLE, ComponentConfig("one", {"lr": "1e-2"})) == {
        "lr": 0.01,
        "encoder": "resnet34",
    }
    thing = object()
    assert build("x", TABLE, ComponentConfig("other"), thing) is thing


def test_build_says_where_a_parameter_is_wrong():
    with pytest.raises(InputError, match=r"^x\.one: lr must be finite, got nan$"):
        build("x", TABLE, ComponentConfig("one", {"lr": math.nan}))


ROWS = [(family, name) for family, table in FAMILIES.items() for name in table]
DOMAINS = [
    *((f"{f}.{n}.{p}", d) for f, n in ROWS for p, d in FAMILIES[f][n].space.items()),
    *SETTINGS.items(),
]


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_every_entry_has_a_one_line_description(family, name):
    about = FAMILIES[family][name].description
    assert about and "\n" not in about
    assert name == name.lower() and "." not in name  # it becomes part of a dotted name


@pytest.mark.parametrize("domain", [d for _, d in DOMAINS], ids=[n for n, _ in DOMAINS])
def test_domains_contain_their_default_and_extremes(domain):
    for value in (domain.default, *domain.extremes()):
        checked = domain.check(value)
        assert checked == value
        assert type(checked) is type(value)
    if not isinstance(domain, Categorical):
        assert domain.low < domain.high
        assert domain.low > 0 or not domain.log
