"""Load and validate study files."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lesionseg.errors import InputError
from lesionseg.registry import FAMILIES
from search.spec.loading import find_differing_keys, load_spec, parse_spec
from search.spec.study_spec import StudySpec
from search.study.pruners import PRUNERS
from search.study.samplers import SAMPLERS
from tests.search.helpers import read_spec, tiny_plain, tiny_spec


def refusal(path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        read_spec(path, text, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.yaml"


# --- the file itself ---------------------------------------------------------------------------


def test_an_empty_mapping_is_a_study(path):
    spec = read_spec(path, "{}")
    assert spec.name == "mine"
    assert spec.space.families.keys() == FAMILIES.keys()
    assert spec.space.size() == 1


def test_the_name_in_the_file_takes_precedence(path):
    assert read_spec(path, "name: other").name == "other"


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a: b: c", 1, 5),
        ("name: x\nbudget: {trials: 3", 2, 19),
        ("name: x\n\t- 1", 2, 1),
        ("search:\n  loss: [bce\n  model: unet\n", 3, 8),
    ],
)
def test_invalid_yaml_is_an_error_with_its_position(path, text, line, column):
    assert refusal(path, text).startswith(f"not YAML: line {line}, column {column}: ")


@pytest.mark.parametrize(
    ("text", "where", "key"),
    [
        ("name: a\nseed: 1\nname: b", "line 3, column 1", "'name'"),
        ("budget:\n  trials: 1\n  epochs: 2\n  trials: 3", "line 4, column 3", "'trials'"),
        ("search: {loss: {bce: {}, bce: {}}}", "line 1, column 26", "'bce'"),
        ("budget: {1: 2, 1: 3}", "line 1, column 16", "1"),
    ],
)
def test_duplicate_keys_are_errors(path, text, where, key):
    assert refusal(path, text) == f"not YAML: {where}: duplicate key {key}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, "nested too deeply"),
        ("a: 2026-02-30", "a value that cannot be read: day is out of range for month"),
        ("a: !!bool maybe", "a value that cannot be read: 'maybe'"),
        ("a: !!int ''", "a value that cannot be read: string index out of range"),
        ("a: !!timestamp x", "a value that cannot be read: "),
        (f"seed: {'9' * 5000}", "a value that cannot be read: Exceeds the limit"),
        (f"seed: 0x{'f' * 5000}", "line 1, column 7: a number that is too large"),
    ],
)
def test_values_that_yaml_cannot_construct_are_errors(path, text, message):
    assert refusal(path, text).startswith(f"not YAML: {message}")


@pytest.mark.parametrize("text", ["{[a]: b}", "? {a: 1}\n: 2"])
def test_unhashable_keys_are_errors(path, text):
    assert "found unhashable key" in refusal(path, text)


@pytest.mark.parametrize(
    ("text", "kind"), [("", "NoneType"), ("- a", "list"), ("3", "int"), ("word", "str")]
)
def test_a_file_without_a_mapping_is_an_error(path, text, kind):
    assert refusal(path, text) == f"a file must be keys and values, got {kind}"


def test_a_binary_file_is_an_error(path):
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="cannot be read: not UTF-8 text"):
        load_spec(str(path))


def test_missing_files_and_folders_are_errors(tmp_path):
    with pytest.raises(InputError, match="No such file or directory"):
        load_spec(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        load_spec(str(tmp_path / "folder.yaml"))


def test_unknown_studies():
    with pytest.raises(InputError, match=r"unknown study 'quik' \(did you mean 'quick'\?\)"):
        load_spec("quik")
    with pytest.raises(InputError, match=r"\(known: everything, isic2018, ph2, quick\)"):
        load_spec("zzz")


def test_yaml_merge_keys(path):
    text = "budget: &b {trials: 7, epochs: 3}\nfinal: {seeds: 2}\n"
    spec = read_spec(path, text + "pruner: {name: none}\n")
    assert spec.budget.trials == 7
    text = "limit: &l {train: 9, val: 8}\ndata: {limit: {<<: *l, val: 5}}"
    # The anchor's own key is unknown; what it was merged into is not.
    assert refusal(path, text).startswith("limit: unknown key")


def test_booleans_follow_yaml_1_2(path):
    assert read_spec(path, "fixed: {amp: off}").space.settings["amp"] == "off"
    assert "got 'yes'" in refusal(path, "budget: {trials: yes}")
    assert read_spec(path, "{}", ("fixed.amp=off",)).space.settings["amp"] == "off"


# --- keys and values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budgets: {}", "budgets: unknown key (did you mean 'budget'?)"),
        ("budget: {trails: 3}", "budget.trails: unknown key (did you mean 'trials'?)"),
        ("data: {image_sise: 64}", "data.image_sise: unknown key (did you mean 'image_size'?)"),
        ("data: {split: {tran: 0.7}}", "data.split.tran: unknown key (did you mean 'train'?)"),
        ("data: {limit: {tests: 1}}", "data.limit.tests: unknown key (did you mean 'test'?)"),
        ("sampler: {nam: tpe}", "sampler.nam: unknown key (did you mean 'name'?)"),
        ("pruner: {startups: 1}", "pruner.startups: unknown key (did you mean 'startup'?)"),
        ("constraints: {max_param_m: 1}", "did you mean 'max_params_m'?"),
        ("final: {seed: 1}", "final.seed: unknown key (did you mean 'seeds'?)"),
        ("search: {modl: unet}", "search.modl: unknown key (did you mean 'model'?)"),
        ("search: {bach_size: 8}", "search.bach_size: unknown key (did you mean 'batch_size'?)"),
        ("fixed: {clipnorm: 1}", "fixed.clipnorm: unknown key (did you mean 'clip_norm'?)"),
        ("search: {model: unte}", "search.model: unknown model 'unte' (did you mean 'unet'?)"),
        (
            "search: {model: {unet: {widht: 8}}}",
            "search.model.unet: unknown parameter 'widht' (did you mean 'width'?)",
        ),
        ("search: {loss: {dice: {x: 1}}}", "search.loss.dice: unknown parameter 'x' (it has none)"),
        ("search: {augment: {flips: 3}}", "must be {parameter: value or range}, got 3"),
    ],
)
def test_unknown_keys(path, text, message):
    assert message in refusal(path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "budget: {trials: -1}",
            "budget.trials: input should be greater than or equal to 1, got -1",
        ),
        ("budget: {trials: 1.5}", "budget.trials"),
        ("budget: {hours: 0}", "budget.hours: input should be greater than 0, got 0"),
        ("budget: {gpu_hours: 0}", "budget.gpu_hours: input should be greater than 0, got 0"),
        ("budget: {trial_minutes: -1}", "budget.trial_minutes: input should be greater than 0"),
        ("budget: {stall_minutes: 0}", "budget.stall_minutes: input should be greater than 0"),
        ("budget: 5", "budget: "),
        ("data: {split: offical}", "data.split.mode: input should be 'auto', 'official' or"),
        ("data: {split: {train: 0.5}}", "data.split: train, val and test must add up to 1"),
        ("data: {split: {train: .nan}}", "data.split.train"),
        ("data: {split: {train: null}}", "data.split: train and val are required without kfold"),
        ("data: {split: {kfold: 1}}", "data.split.kfold: input should be greater than or equal to"),
        ("data: {split: {kfold: 2.5}}", "data.split.kfold: input should be a valid integer"),
        (
            "data: {split: {kfold: 5, val: 0.2}}",
            "data.split: kfold splits all images that are not for testing into equal folds, "
            "each of which is val once; leave val out",
        ),
        (
            "data: {split: {kfold: 5, train: 0.7, val: 0.15, test: 0.15}}",
            "leave train and val out",
        ),
        ("data: {layout: isic}", "data.layout: must be one of auto"),
        ("data: {image_size: 8}", "data.image_size"),
        ("sampler: {name: tpee}", "did you mean 'tpe'?"),
        ("pruner: {name: medin}", "did you mean 'median'?"),
        ("pruner: {min_epochs: 41}", "pruner.min_epochs: must be at most budget.epochs (40)"),
        ("final: {fit_on: test}", "final.fit_on: input should be 'train' or 'train_val'"),
        ("name: a/b", "name: "),
        ("name: ..", "name: "),
        ("seed: -1", "seed: "),
        ("1: 2", "1: keys should be strings"),
    ],
)
def test_invalid_values(path, text, message):
    assert message in refusal(path, text)


def test_min_epochs_without_a_pruner(path):
    assert read_spec(path, "pruner: {name: none, min_epochs: 100}").pruner.min_epochs == 100


def test_all_errors_are_reported(path):
    text = """
    budget: {trials: 0, epochz: 3}
    final: {fit_on: val}
    data: {image_size: 100}
    sampler: {name: nope}
    fixed: {batch_size: [8, 16]}
    search:
      loss: [bce, dise]
      optimizer: {adam: {lr: [1.0e-2, 1.0e-4]}}
    """
    message = refusal(path, text)
    for n, fragment in enumerate(
        [
            "budget.trials: ",
            "budget.epochz: unknown key",
            "sampler.name: must be one of",
            "final.fit_on: ",
            "search.loss: unknown loss 'dise'",
            "search.optimizer.adam.lr: must have low <= high, got [0.01, 0.0001]",
            "fixed.batch_size: must be one value",
            "data.image_size: unet takes multiples of 16 from 16 on, got 100",
        ],
        1,
    ):
        assert f"({n}) {fragment}" in message, (n, message)
    assert "(9)" not in message


def test_one_error_is_not_numbered(path):
    assert not refusal(path, "budget: {trials: 0}").startswith("(1)")


def test_exponents_are_numbers(path):
    # 1e-4 without a point is a string in YAML 1.1.
    text = "search: {optimizer: {adam: {lr: [1e-4, 1e-2]}}}\nbudget: {hours: 1e-1}"
    spec = read_spec(path, text)
    lr = spec.space.families["optimizer"]["adam"]["lr"]
    assert (lr.low, lr.high) == (0.0001, 0.01)
    assert spec.budget.hours == 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_samplers(name):
    changes = {"sampler.name": name, "search.optimizer": {"adam": {"lr": 0.01}}}
    assert tiny_spec(changes).sampler.name == name


@pytest.mark.parametrize("name", PRUNERS)
def test_all_pruners(name):
    assert tiny_spec({"pruner": {"name": name, "min_epochs": 1}}).pruner.name == name


def test_a_grid_needs_a_finite_space(path):
    with pytest.raises(InputError, match=r"sampler.name: grid needs values"):
        tiny_spec({"sampler.name": "grid"})
    tiny_spec({"sampler.name": "grid", "search.optimizer": {"adam": {"lr": 0.01}}})
    # A range of one value is a value.
    tiny_spec({"sampler.name": "grid", "search.optimizer": {"adam": {"lr": [0.01, 0.01]}}})


def test_short_form_of_a_split(path):
    assert read_spec(path, "data: {split: official}").data.split.mode == "official"


def test_the_default_mode_of_folds(path):
    split = read_spec(path, "data: {split: {kfold: 5}}").data.split
    assert (split.kfold, split.mode, split.shares) == (5, "auto", {"test": 0.15})
    split = read_spec(path, "data: {split: {kfold: 5, mode: shares, test: 0.3}}").data.split
    assert (split.mode, split.shares) == ("shares", {"test": 0.3})
    split = read_spec(path, "data: {split: official}", ("data.split.kfold=3",)).data.split
    assert (split.kfold, split.mode) == (3, "official")


def test_specs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        tiny_spec().name = "other"


# --- --set -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "look", "value"),
    [
        ("budget.epochs=3", lambda s: s.budget.epochs, 3),
        ("name=other", lambda s: s.name, "other"),
        ("data.split=official", lambda s: s.data.split.mode, "official"),
        ("data.split.seed=7", lambda s: s.data.split.seed, 7),
        ("data.limit.train=5", lambda s: s.data.limit.train, 5),
        ("fixed.batch_size=4", lambda s: s.space.settings["batch_size"], 4),
        ("search.loss=dice", lambda s: list(s.space.families["loss"]), ["dice"]),
        ("search.loss=[dice, bce]", lambda s: list(s.space.families["loss"]), ["dice", "bce"]),
        ("search.loss=all", lambda s: list(s.space.families["loss"]), list(FAMILIES["loss"])),
        ("search.model.unet.depth=2", lambda s: s.space.families["model"]["unet"]["depth"], 2),
        ("search.model.segnet={}", lambda s: list(s.space.families["model"]), ["unet", "segnet"]),
        ("budget.hours=1e-2", lambda s: s.budget.hours, 0.01),
        ("budget.hours=", lambda s: s.budget.hours, None),
        ("budget.hours=null", lambda s: s.budget.hours, None),
        ("budget.gpu_hours=3", lambda s: s.budget.gpu_hours, 3.0),
        ("budget.trial_minutes=0.5", lambda s: s.budget.trial_minutes, 0.5),
        ("budget.stall_minutes=null", lambda s: s.budget.stall_minutes, None),
        ("budget.stall_minutes=15", lambda s: s.budget.stall_minutes, 15.0),
        (" budget.trials =9", lambda s: s.budget.trials, 9),
        ("constraints.max_params_m=2.5", lambda s: s.constraints.max_params_m, 2.5),
    ],
)
def test_override_one_key(path, override, look, value):
    text = yaml.safe_dump(tiny_plain({"data.image_size": 64}))
    assert look(read_spec(path, text, (override,))) == value


@pytest.mark.parametrize(
    ("text", "override", "options"),
    [
        ("search: {model: segnet}", "search.model.unet.width=8", ["segnet", "unet"]),
        ("search: {model: [segnet, unet]}", "search.model.unet.width=8", ["segnet", "unet"]),
        ("search: {model: all}", "search.model.unet.width=8", list(FAMILIES["model"])),
        ("search: {}", "search.model.unet.width=8", ["unet"]),
        ("search: {model: {unet: }}", "search.model.unet.width=8", ["unet"]),
    ],
)
def test_override_below_a_short_form(path, text, override, options):
    spec = read_spec(path, text, (override,))
    assert list(spec.space.families["model"]) == options
    assert spec.space.families["model"]["unet"]["width"] == 8


def test_override_below_the_short_form_of_a_split(path):
    split = read_spec(path, "data: {split: official}", ("data.split.seed=3",)).data.split
    assert (split.mode, split.seed) == ("official", 3)


def test_later_overrides_take_precedence(path):
    overrides = ("search.loss=[focal, bce]", "search.loss.focal.gamma=2", "seed=1", "seed=2")
    spec = read_spec(path, "{}", overrides)
    assert spec.seed == 2
    assert list(spec.space.families["loss"]) == ["focal", "bce"]
    assert spec.space.families["loss"]["focal"]["gamma"] == 2


@pytest.mark.parametrize("override", ["budget.epochs", "", "=3", "  =3"])
def test_invalid_overrides(path, override):
    assert refusal(path, "{}", override).startswith("--set: must be KEY=VALUE such as")


def test_overrides_with_invalid_yaml(path):
    assert refusal(path, "{}", "a.b=[1") == "--set: a.b: the value is not YAML: '[1'"


@pytest.mark.parametrize("override", ["budget.epoch=3", "budgets.epochs=3", "search.lss=bce"])
def test_overrides_of_unknown_keys(path, override):
    assert "unknown key (did you mean" in refusal(path, "{}", override)


# --- plain data --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("search.loss=all",),
        ("fixed.amp=off", "data.split=official", "budget.hours=0.5"),
        ("data.split.kfold=4",),
    ],
)
def test_stored_specs_are_equal(overrides, path):
    spec = read_spec(path, yaml.safe_dump(tiny_plain()), overrides)
    plain = spec.model_dump(mode="json")
    for stored in (json.loads(json.dumps(plain)), yaml.safe_load(yaml.safe_dump(plain))):
        again = parse_spec(stored, "stored")
        assert again == spec
        assert again.space == spec.space
    # The frozen study.yaml can be run as a study of its own.
    assert read_spec(path, yaml.safe_dump(plain)) == spec


def test_find_differing_keys():
    old = {"a": 1, "b": {"c": 1, "d": {"e": 1}}, "f": [1, 2]}
    new = {"a": 1, "b": {"c": 2, "d": {"e": 1, "g": 3}}, "f": [2, 1], "h": None}
    assert find_differing_keys(old, new) == [
        "b.c",
        "b.d.g",
        "f",
    ]  # None is what an absent key reads as
    assert find_differing_keys(old, old) == []
    assert find_differing_keys({"a": {"b": 1}}, {"a": 1}) == ["a"]


words = st.text("ab1.[é ", max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner),
    max_leaves=8,
)
keys = st.sampled_from([*StudySpec.model_fields, "x"])


@settings(deadline=None)  # the first example pays for imports
@given(plain=st.dictionaries(keys, json_values, max_size=4))
def test_any_data_is_a_spec_or_an_error(plain):
    try:
        parse_spec({"name": "x"} | plain, "file")
    except InputError as error:
        assert str(error).startswith("file: ")


search_values = st.dictionaries(
    st.sampled_from([*FAMILIES, "batch_size", "seed", "x"]),
    json_values
    | st.dictionaries(st.sampled_from(["unet", "bce", "adam", "full", "cosine"]), json_values),
    max_size=3,
)


@settings(deadline=None)  # the first example pays for imports
@given(search=search_values, fixed=search_values)
def test_any_search_space_is_a_spec_or_an_error(search, fixed):
    try:
        parse_spec({"name": "x", "search": search, "fixed": fixed}, "file")
    except InputError as error:
        assert str(error).startswith("file: ")
