"""``procguard keys`` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from procguard.adapters.zmq_key_files import read_allowed
from procguard.adapters.zmq_keys import MEMBER, OPERATOR, Listed, fingerprint
from procguard.main import main
from tests.keys import Keys


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments])


def listed(directory: str = "DIR") -> set[Listed]:
    return set(read_allowed(Path(directory) / "allowed").values())


A, B, C = (Listed(MEMBER, name) for name in "abc")
ME = Listed(OPERATOR, "me")


@pytest.mark.parametrize(
    "words",
    [
        "DIR --members a b c --operator me",
        "DIR --operator me --members a b c",
        "--operator me DIR --members a b c",
        "DIR --members a --members b --members c --operator me",
        "DIR --members=a b c --operator=me",
    ],
)
def test_members_are_named_in_one_go(words: str) -> None:
    made = keys("new", *words.split())
    assert made.exit_code == 0, made.stderr
    assert listed() == {A, B, C, ME}
    assert "procguard-lighthouse --keys DIR" in made.stdout
    assert "export PROCGUARD_KEYS=DIR/members/a.key" in made.stdout


def test_a_directory_that_was_forgotten_is_not_made_of_a_member() -> None:
    made = keys("new", "--members", "a", "b", "DIR")
    assert made.exit_code == 2
    assert "Missing argument 'DIR'" in made.stderr
    assert list(Path().iterdir()) == []


def test_members_must_be_named() -> None:
    assert "--members" in keys("new", "DIR").stderr
    assert keys("new", "DIR", "--members").exit_code == 2


def test_add_revoke_and_list() -> None:
    assert keys("new", "DIR", "--members", "a").exit_code == 0
    assert keys("add", "DIR", "b").stdout == "DIR/members/b.key\n"
    assert keys("add", "DIR", "me", "--operator").stdout == "DIR/operators/me.key\n"
    assert listed() == {A, B, ME}
    assert keys("revoke", "DIR", "a").exit_code == 0
    assert listed() == {B, ME}
    shown = keys("list", "DIR")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["lighthouse", "member", "operator"]


def test_what_is_shown_is_no_secret(here: Path) -> None:
    made = Keys(here / "DIR")
    said = [keys("list", "DIR"), keys("add", "DIR", "c"), keys("add", "DIR", "a"), keys("new", "DIR")]
    shown = "".join(result.output for result in said)
    assert fingerprint(made.member().public) in shown
    assert not [secret for secret in made.secrets() if secret[:16] in shown]


def test_nothing_is_overwritten(here: Path) -> None:
    Keys(here / "DIR")
    for attempt in (["new", "DIR", "--members", "x"], ["add", "DIR", "a"]):
        refused = keys(*attempt)
        assert refused.exit_code == 2
        assert "never overwritten" in refused.stderr


def test_a_directory_that_is_none_of_ours(here: Path) -> None:
    for attempt in (["list", "nowhere"], ["add", "nowhere", "x"], ["list", "."]):
        refused = keys(*attempt)
        assert refused.exit_code == 2
        assert refused.stderr.startswith("Error: ")
        assert "procguard keys new" in refused.stderr
