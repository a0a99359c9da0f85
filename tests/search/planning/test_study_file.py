"""A plan as a study file."""

import pytest
import yaml

from search.planning.study_file import WIDTH, render_study
from tests.search.helpers import read_spec
from tests.search.planning.machines import GPU, ONLINE, plan


@pytest.mark.parametrize(
    "options",
    [{"hours": 0.06}, {"hours": 0.5}, {"hours": 24, "speeds": GPU, "weights": ONLINE, "slots": 8}],
)
def test_the_printed_file_gives_the_plan(options, tmp_path):
    made = plan(**options)
    text = render_study(made, ["first line", "second line"])
    assert text.startswith("# first line\n# second line\nname: auto\n")
    assert read_spec(tmp_path / "other.yaml", text) == made.spec


def test_each_choice_has_its_reason_above_it():
    made = plan(0.5)
    lines = render_study(made, []).splitlines()
    for key in ("trials", "image_size", "epochs", "finalists", "fit_on", "model"):
        for i in [i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:")]:
            assert lines[i - 1].strip().startswith("# ")
    assert all(len(line) <= WIDTH for line in lines if line.strip().startswith("#"))
    unused = set(made.reasons) - {
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in yaml.safe_load("\n".join(lines)).items()
        for key in (value if isinstance(value, dict) else [""])
    }
    # Of a section as a whole, and of keys that this plan does not have.
    assert unused == {"data.limit", "search", "sampler", "pruner"}
