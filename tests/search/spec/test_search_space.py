"""Search spaces of studies and the tables."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lesionseg.config import DEFAULT_COMPONENTS, SETTINGS, TrialConfig
from lesionseg.registry import FAMILIES
from lesionseg.space import Categorical, Float, Int
from search.spec.search_space import parse_space
from search.study.samplers import SAMPLERS
from search.study.suggest import suggest
from tests.search.helpers import in_memory

#: A size that every model takes, so that only what is tested can be refused.
SETTLED = {"image_size": 4096, "epochs": 1, "patience": 0, "seed": 0}
ROWS = [(family, name) for family, table in FAMILIES.items() for name in table]
PARAMS = [
    (family, name, key, domain)
    for family, name in ROWS
    for key, domain in FAMILIES[family][name].space.items()
]
OPEN_SETTINGS = [key for key in SETTINGS if key not in SETTLED]


def parse(search=None, fixed=None, **settled):
    return parse_space(search or {}, fixed or {}, {**SETTLED, **settled})


def errors_of(search=None, fixed=None, **settled):
    return parse(search, fixed, **settled)[1]


# --- ways of writing ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_families_left_out_have_their_default(family):
    space, errors = parse()
    option = FAMILIES[family][DEFAULT_COMPONENTS[family]]
    assert errors == []
    assert space.families[family] == {DEFAULT_COMPONENTS[family]: option.resolve({})}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_options_of_a_family(family):
    space, errors = parse({family: "all"})
    assert errors == []
    assert space.families[family] == {n: usual(o) for n, o in FAMILIES[family].items()}


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_name_list_and_mapping_are_equivalent(family, name):
    ways = [name, [name], {name: {}}, {name: None}]
    spaces = [parse({family: way}) for way in ways]
    assert all(errors == [] for _, errors in spaces)
    expected = usual(FAMILIES[family][name])
    assert all(space.families[family] == {name: expected} for space, _ in spaces)


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_all_parameters_of_an_option(family, name):
    space, errors = parse({family: {name: "all"}})
    assert errors == []
    assert space.families[family] == {name: dict(FAMILIES[family][name].space)}


def test_parameters_fixed_by_default_can_be_opened():
    space, errors = parse({"model": {"unet": {"norm": ["batch", "group"], "dropout": [0, 0.2]}}})
    assert errors == []
    unet = space.families["model"]["unet"]
    assert unet["norm"] == Categorical(("batch", "group"), "batch")
    assert unet["dropout"] == Float(0, 0.2, 0)
    assert unet["attention"] is False


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"choices": [16, 64]}, Categorical((16, 64), 16)),
        ({"choices": [8]}, Categorical((8,), 8)),
    ],
)
def test_choices(wanted, expected):
    space, errors = parse({"model": {"unet": {"width": wanted}}})
    assert errors == []
    assert space.families["model"]["unet"]["width"] == expected
    config = suggest(in_memory().ask(), space)
    assert config.model.params["width"] in expected.choices


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"choices": []}, "must be a value, a range or {choices: [value, ...]}"),
        ({"choices": 16}, "must be a value, a range or {choices: [value, ...]}"),
        ({"choice": [16]}, "must be a value, a range or {choices: [value, ...]}"),
        ({"choices": [16, 16]}, "names a choice twice"),
        ({"choices": [16, 500]}, "must lie in [4, 128], got 500"),
    ],
)
def test_invalid_choices(wanted, told):
    (error,) = errors_of({"model": {"unet": {"width": wanted}}})
    assert error.startswith("search.model.unet.width: ") and told in error


def test_weights_from_a_file():
    space, errors = parse({"model": {"smp_fpn": {"weights": ["none", "/w/mine.safetensors"]}}})
    assert errors == []
    weights = space.families["model"]["smp_fpn"]["weights"]
    assert weights.choices == ("none", "/w/mine.safetensors")
    (error,) = errors_of({"model": {"smp_fpn": {"weights": "imagenett"}}})
    assert error.startswith("search.model.smp_fpn.weights: must be one of its choices")


def usual(option):
    """Return the parameters of an option that is named without parameters."""
    return {k: d.default if k in option.fixed_by_default else d for k, d in option.space.items()}


def value_in(domain):
    """Return a value of the domain, if possible not the default."""
    match domain:
        case Float(low, high):
            return low + (high - low) / 4
        case Int(low, high):
            return high if domain.default != high else low
        case Categorical(choices):
            return choices[-1]


@pytest.mark.parametrize(("family", "name", "key", "domain"), PARAMS)
def test_every_parameter_can_be_fixed_and_narrowed(family, name, key, domain):
    value = value_in(domain)
    space, errors = parse({family: {name: {key: value}}})
    assert errors == []
    assert space.families[family][name][key] == value
    whole = list(domain.choices) if isinstance(domain, Categorical) else [domain.low, domain.high]
    space, errors = parse({family: {name: {key: whole}}})
    assert errors == []
    assert space.families[family][name] == usual(FAMILIES[family][name]) | {key: domain}


@pytest.mark.parametrize(("family", "name", "key", "domain"), PARAMS)
def test_no_parameter_can_be_widened(family, name, key, domain):
    if isinstance(domain, Categorical):
        beyond = [["no such choice"], "no such choice", [domain.choices[0]] * 2, [], {}]
    else:
        beyond = [
            domain.low - 1,
            domain.high + 1,
            [domain.low - 1, domain.high],
            [domain.low, domain.high + 1],
            [domain.high, domain.low],
            [domain.low],
            [domain.low, domain.high, domain.high],
            [],
            "word",
            True,
            None,
            float("nan"),
            float("inf"),
            [[domain.low], domain.high],
        ]
    for wanted in beyond:
        (error,) = errors_of({family: {name: {key: wanted}}})
        assert error.startswith(f"search.{family}.{name}.{key}: "), wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", [[], {}, None, 3, True])
def test_a_family_without_options_is_an_error(family, wanted):
    (error,) = errors_of({family: wanted})
    assert error.startswith(f"search.{family}: must name at least one option (")


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_a_repeated_option_is_an_error(family, name):
    (error,) = errors_of({family: [name, name]})
    assert error.startswith(f"search.{family}: names an option twice")


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", OPEN_SETTINGS)
def test_settings_under_fixed_and_search(key):
    value = value_in(SETTINGS[key])
    for space, errors in (parse(fixed={key: value}), parse({key: value})):
        assert errors == []
        assert space.settings == {**SETTLED, key: value}


@pytest.mark.parametrize("key", OPEN_SETTINGS)
def test_invalid_fixed_settings(key):
    value = value_in(SETTINGS[key])
    (error,) = errors_of(fixed={key: [value]})
    assert error.startswith(f"fixed.{key}: must be one value")
    (error,) = errors_of({key: value}, {key: value})
    assert error == f"fixed.{key}: is under search too; keep one of them"


@pytest.mark.parametrize(
    ("key", "home"),
    [
        ("image_size", "under data"),
        ("epochs", "under budget"),
        ("patience", "under budget"),
        ("seed", "to the top level"),
    ],
)
def test_settings_of_other_sections_are_errors(key, home):
    assert errors_of({key: 64}) == [f"search.{key}: belongs {home}"]
    assert errors_of(fixed={key: 64}) == [f"fixed.{key}: belongs {home}"]


def test_a_range_of_batch_sizes():
    space, errors = parse({"batch_size": [8, 32]})
    assert errors == []
    assert (space.settings["batch_size"].low, space.settings["batch_size"].high) == (8, 32)


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size", "told"),
    [
        ({"unet": {"depth": 4}}, 100, "multiples of 16 from 16 on, got 100; the nearest is 96"),
        ({"unet": {"depth": 4}}, 105, "got 105; the nearest is 112"),
        # The deepest network that can be drawn decides.
        ({"unet": {"depth": [2, 5]}}, 80, "multiples of 32 from 32 on, got 80; the nearest is 64"),
        ("segnet", 16, "segnet takes multiples of 32 from 32 on, got 16; the nearest is 32"),
    ],
)  # fmt: skip
def test_image_size_errors_name_the_nearest_size(model, size, told):
    (error,) = errors_of({"model": model}, image_size=size)
    assert error.startswith("data.image_size: ")
    assert told in error


@pytest.mark.parametrize("model", FAMILIES["model"])
@pytest.mark.parametrize("size", [16, 31, 64, 100, 127, 250])
def test_the_nearest_size_is_valid(model, size):
    for error in errors_of({"model": model}, image_size=size):
        nearest = int(error.rpartition(" ")[2])
        assert errors_of({"model": model}, image_size=nearest) == []


@pytest.mark.parametrize(
    "model", [n for n, o in FAMILIES["model"].items() if o.min_image_size > 16]
)
def test_image_size_below_the_smallest(model):
    (error,) = errors_of({"model": model}, image_size=16)
    assert int(error.rpartition(" ")[2]) >= FAMILIES["model"][model].min_image_size


def test_image_size_errors_of_several_models():
    search = {"model": {"segnet": {}, "unet": {"depth": 4}}}
    assert [e.split()[1] for e in errors_of(search, image_size=72)] == ["segnet", "unet"]
    assert [e.split()[1] for e in errors_of(search, image_size=48)] == ["segnet"]
    assert errors_of(search, image_size=96) == []


def test_image_size_is_checked_only_for_valid_models():
    errors = errors_of({"model": {"unet": {"depth": 4}}, "loss": "x"}, image_size=100)
    assert [e.partition(":")[0] for e in errors] == ["search.loss", "data.image_size"]
    errors = errors_of({"model": {"unet": {"depth": 40}}}, image_size=100)
    assert [e.partition(":")[0] for e in errors] == ["search.model.unet.depth"]


# --- how many ----------------------------------------------------------------------------------


def test_size():
    search = {
        # 2 depths x 3 widths, and 5 widths: 11
        "model": {"unet": {"depth": [1, 2], "width": [4, 6]}, "segnet": {"width": [4, 8]}},
        # 1 and 1: 2
        "loss": {"bce": {}, "focal": {"gamma": 2, "alpha": [0.5, 0.5]}},
        "batch_size": [8, 10],  # 3
        "amp": ["auto", "off"],  # 2
    }
    space, errors = parse(search)
    assert errors == []
    assert space.size() == 11 * 2 * 3 * 2
    assert space.is_finite()


def test_size_with_real_ranges_is_infinite():
    space, _ = parse({"loss": ["bce", "focal"]})
    assert space.size() == math.inf
    assert not space.is_finite()


# --- suggestions -------------------------------------------------------------------------------


@st.composite
def narrowed(draw, domain):
    """A value, a sub-range or some choices of a domain."""
    if isinstance(domain, Categorical):
        some = st.lists(st.sampled_from(domain.choices), min_size=1, unique=True)
        return draw(some | st.sampled_from(domain.choices))
    if isinstance(domain, Float):
        number = st.floats(domain.low, domain.high)
    else:
        number = st.integers(0, (domain.high - domain.low) // domain.step).map(
            lambda k: domain.low + k * domain.step
        )
    return draw(st.lists(number, min_size=2, max_size=2).map(sorted) | number)


def lies_in(value, wanted):
    if not isinstance(wanted, list):
        return value == wanted
    if isinstance(wanted[0], str | bool):
        return value in wanted
    return wanted[0] <= value <= wanted[1]


@settings(deadline=None, max_examples=150)
@given(data=st.data(), seed=st.integers(0, 2**31 - 1))
def test_samples_are_within_any_narrowed_option(data, seed):
    family, name, key, domain = data.draw(st.sampled_from(PARAMS))
    wanted = data.draw(narrowed(domain))
    space, errors = parse({family: {name: {key: wanted}}})
    assert errors == []
    study = in_memory(SAMPLERS["random"](seed, 0))
    for _ in range(3):
        value = getattr(suggest(study.ask(), space), family).params[key]
        # Without a study the weights "auto" are random ones.
        assert lies_in(value, wanted) or (value == "none" and lies_in("auto", wanted))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_samples_are_within_any_narrowed_setting(data):
    key = data.draw(st.sampled_from(OPEN_SETTINGS))
    wanted = data.draw(narrowed(SETTINGS[key]))
    space, errors = parse({key: wanted})
    assert errors == []
    assert lies_in(getattr(suggest(in_memory().ask(), space), key), wanted)


def test_extremes_of_a_space_are_valid_configurations():
    """Valid spaces contain only valid configurations."""
    space, _ = parse(dict.fromkeys(FAMILIES, "all") | {"batch_size": [1, 4096]})
    for size, clip in itertools.product((1, 4096), (0.0, 1e6)):
        TrialConfig(**SETTLED, batch_size=size, clip_norm=clip)
    assert suggest(in_memory().ask(), space)
