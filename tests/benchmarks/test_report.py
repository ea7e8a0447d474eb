"""The form of all reports."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import Case, Report, Target, quantile


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.01, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.99, 4), (1.0, 4)]
)
def test_a_quantile_is_one_of_the_values(share: float, value: int) -> None:
    assert quantile([4, 2, 3, 1], share) == value


def test_a_case_says_what_its_figures_are() -> None:
    times = Case.of("crash", 4, [3.0, 1.0, 2.0], "a note")
    assert times == Case("crash", 4, 3, 2.0, 3.0, 3.0, "ms", "a note")
    assert Case.of("RSS", 4, [60.0], unit="MiB").unit == "MiB"


def test_a_target_bounds_from_above_or_from_below() -> None:
    assert Target.at_most("p50", 2, 2.0).met
    assert not Target.at_most("p50", 2, 2.0004).met
    assert Target.at_least("rate", 2, 2.0).met
    assert not Target.at_least("rate", 2, 1.9996).met


def test_a_report_is_a_table_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("heal", "this machine")
    report.cases.append(Case.of("heal", 2, [1.25], unit="GB/s"))
    report.targets += [Target.at_least("heal GB/s", 1, 1.25), Target.at_most("memory", 1.5, 2.0)]
    report.show(as_json=True)
    assert json.loads(capsys.readouterr().out)["targets"][0] == {
        "name": "heal GB/s",
        "bound": "at least",
        "target": 1,
        "measured": 1.25,
        "met": True,
    }
    report.show(as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["heal", "2", "1", "1.25", "1.25", "1.25", "GB/s"] in lines
    assert ["heal", "GB/s", "at", "least", "1", "1.25", "met"] in lines
    assert ["memory", "at", "most", "1.5", "2.0", "MISSED"] in lines
