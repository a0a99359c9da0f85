"""The headline of a report: the result, warnings and key facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from search.results.formatting import (
    MISSING,
    format_count,
    format_duration,
    format_interval,
    format_number,
)
from search.results.selection_tables import describe_gain, format_fidelity
from search.spec.formatting import format_encoder_weights, format_weights

Facts = Mapping[str, Any]


def report_headline(facts: Facts) -> dict[str, Any]:
    """Return the result in large type with its caption, a sentence, warnings and key facts."""
    search, final = facts["search"], facts["test"]["metrics"]
    best, counts = search["best"], search["counts"]
    value, caption = MISSING, "no complete trial"
    if final:
        value = format_number(final["test"]["dice"])
        caption = f"test Dice, 95% interval {format_interval(*final['ci95']['dice'])}"
    elif best:
        value = format_number(best["dice"])
        caption = "validation Dice of the best trial; not tested yet"
    if facts["selected"]:
        trials = format_count(search["finished"], "trial")
        sentence = (
            f"Trial {facts['selected']['trial']} was selected by validation Dice from {trials}"
        )
    else:
        sentence = f"{format_count(search['finished'], 'trial was', 'trials were')} run"
    closed = f"; {counts['closed']} more closed without cost" if counts["closed"] else ""
    sentence += (
        f" ({counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
        f"{closed}) in {format_duration(search['hours'] * 3600)}."
    )
    if final:
        on_train_val = facts["reproduction"]["spec"]["final"]["fit_on"] == "train_val"
        sentence += _describe_test(final, on_train_val=on_train_val)
    elif best:
        sentence += " The final test has not been run yet."
    return {
        "value": value,
        "caption": caption,
        "sentence": sentence,
        "warnings": list(_warnings(facts)),
        "key_facts": list(_key_facts(facts)),
    }


def _describe_test(final: Facts, *, on_train_val: bool) -> str:
    """Return how the tested network followed from the search, as sentences after others."""
    finalists, ensemble = final.get("finalists") or [], final.get("ensemble")
    joint = "the training and validation images"
    text = f" It was retrained on {joint if on_train_val else 'the training images'}"
    if len(finalists) > 1:
        text = (
            f" The best {len(finalists)} trials were retrained on the training images; trial "
            f"{final['trial']} had the highest mean validation Dice"
        )
        text += f" and was then retrained on {joint}" if on_train_val else ""
    tested = f"tested on {format_count(final['test']['n'], 'image')}."
    if not ensemble:
        return f"{text} and {'was ' * (len(finalists) > 1)}{tested}"
    return f"{text}. An ensemble of {len(ensemble['members'])} networks was {tested}"


def _warnings(facts: Facts) -> Iterator[str]:
    search, test = facts["search"], facts["test"]
    best, counts, final = search["best"], search["counts"], test["metrics"]
    if final and best and best["number"] not in final.get("candidates", [final["trial"]]):
        yield (
            f"The search continued after the test. Trial {best['number']} has since reached a "
            f"validation Dice of {format_number(best['dice'])}; the tested trial is "
            f"{final['trial']}."
        )
    if test["test_evaluations"] > 1:
        yield (
            f"There were {test['test_evaluations']} test evaluations. Changes between them may "
            "depend on test results, so the scores can be optimistic. Only the first test "
            "evaluation is unbiased."
        )
    if final and final["val"]["reproduced"] is False:
        yield (
            "The retraining did not reproduce the search. Its validation Dice differs by "
            f"{format_number(final['val']['gap'], '+.4f')} from that of trial {final['trial']}; "
            f"the tolerance is {test['tolerance']}. The tested network is not the one that the "
            "search found."
        )
    if counts["running"] or counts["waiting"]:
        yield (
            "The search was not finished when this report was written: "
            f"{counts['running']} running, {counts['waiting']} waiting."
        )


def _key_facts(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and explanation of each key fact."""
    search, data, final = facts["search"], facts["data"], facts["test"]["metrics"]
    if final:
        yield from _validation_facts(final, facts["test"]["tolerance"])
    elif best := search["best"]:
        yield "Val. Dice, search", format_number(best["dice"]), f"trial {best['number']}"
    yield from _weights_and_fidelity(facts)
    yield "Test evaluations", str(facts["test"]["test_evaluations"]), ""
    folds = f"in the first of {len(data['folds'])} folds" if data["folds"] else ""
    yield "Images: train, val, test", ", ".join(map(str, data["split"].values())), folds


def _weights_and_fidelity(facts: Facts) -> Iterator[tuple[str, str, str]]:
    final, fidelity = facts["test"]["metrics"], facts["fidelity"]
    studied = facts["search"]["encoder_weights"]
    if final and (source := final.get("encoder_weights")):
        member = "of the member with the largest weight" if final.get("ensemble") else ""
        yield "Encoder weights", format_weights(source), member
    elif studied and not final:
        yield "Encoder weights", "", format_encoder_weights(studied)
    searched, tested = (format_fidelity(fidelity[key]) for key in ("search", "final"))
    where = "in search and final test"
    if searched != tested:
        where = f"in the final test; {searched} in the search"
    yield "Image size and epochs", tested, where


def _validation_facts(final: Facts, tolerance: float) -> Iterator[tuple[str, str, str]]:
    val, folds, ensemble = final["val"], final["val"]["folds"], final.get("ensemble")
    yield "Val. Dice, search", format_number(val["search"]), ""
    if folds:
        dice = ", ".join(map(format_number, folds["dice"]))
        deviation = f"standard deviation {format_number(folds['deviation'])}"
        yield f"Of {len(folds['dice'])} folds", "", f"{dice}; {deviation}"
    if val["retrained"] is None:
        reason = "not comparable: the validation images were trained on"
        if final.get("finalists"):
            reason = "the training with the trial's seed failed"
        yield "Val. Dice, retrained", "", reason
    else:
        yield "Val. Dice, retrained", format_number(val["retrained"]), ""
        if val["gap"] is None:
            yield "Gap", "", "not comparable: retrained at another image size or for other epochs"
        else:
            verdict = "reproduced" if val["reproduced"] else "not reproduced"
            verdict += f" within {tolerance}"
            verdict = f"to the first fold, {verdict}" if folds else verdict
            yield "Gap", format_number(val["gap"], "+.4f"), verdict
    # The table of finalists has the seeds; studies of earlier versions have no finalists.
    if val["seeds"] and len(val["seeds"]) > 1 and not final.get("finalists"):
        dice = ", ".join(f"seed {s} {format_number(d)}" for s, d in val["seeds"].items())
        yield (
            "Retraining", "",
            f"{len(val['seeds'])} seeds, validation Dice: {dice}. The first one repeats the "
            f"trial; seed {final['seed']}, the best by validation Dice, was tested.",
        )  # fmt: skip
    if ensemble:
        gain = "" if ensemble["gain"] is None else f"with a gain of {describe_gain(ensemble)}"
        yield "Ensemble", f"{len(ensemble['members'])} networks", gain
