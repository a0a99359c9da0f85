"""Configurations as one line of text."""

from lesionseg.config import DEFAULT_COMPONENTS, TrialConfig
from lesionseg.space import ComponentConfig
from search.spec.formatting import format_config, format_encoder_weights


def test_line_contains_every_component_and_parameter():
    config = TrialConfig(
        model=ComponentConfig("unet", {"width": 16, "depth": 3}),
        optimizer=ComponentConfig("adam", {"lr": 0.00123456}),
        loss=ComponentConfig("dice"),
    )
    line = format_config(config)
    assert line == "unet(width=16, depth=3) · dice · flips · adam(lr=0.00123) · cosine"
    assert format_config(config.to_dict()) == line
    assert line.count(" · ") == len(DEFAULT_COMPONENTS) - 2  # no mixing is not mentioned


def test_parameters_fixed_by_default_are_shown_only_if_changed():
    params = {"width": 16, "depth": 3, "norm": "batch", "attention": True}
    mix = ComponentConfig("cutmix", {"alpha": 1.0})
    line = format_config(TrialConfig(model=ComponentConfig("unet", params), mix=mix))
    assert line.startswith("unet(width=16, depth=3, attention=true) · bce_dice · flips · cutmix(")


def test_encoder_weights_are_grouped_by_source():
    weights = {"b": "none", "a": "bundled", "c": "bundled", "d": "imagenet", "e": "w.pt"}
    assert format_encoder_weights(weights) == (
        "ImageNet (bundled): a, c; none: b; ImageNet (hub): d; file w.pt: e"
    )
    assert format_encoder_weights({}) == ""
