"""Key files: how they are made, what is refused, and that no secret gets out."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import zmq

from procguard.adapters.zmq_key_files import (
    AllowList,
    add_key,
    find_member,
    find_person,
    listed_keys,
    make_directory,
    read_allowed,
    read_member,
    read_server,
    revoke_key,
)
from procguard.adapters.zmq_keys import MEMBER, OPERATOR, Listed, MemberKeys, fingerprint
from procguard.errors import ConfigError, UsageError
from tests.keys import Keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_may_look_into_the_directory_or_its_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys = Keys(tmp_path / "far" / "keys")
        add_key(keys.directory, Listed(MEMBER, "c"))
    finally:
        os.umask(before)
    files = [path for path in keys.directory.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {mode(path) for path in files} == {0o600}
    assert {mode(path) for path in (keys.directory, *keys.directory.iterdir()) if path.is_dir()} == {0o700}


def test_what_is_written_is_what_is_read(keys: Keys) -> None:
    server, member, operator = keys.server, keys.member(), keys.operator
    assert (member.role, member.name, member.server) == (MEMBER, "a", server.public)
    assert (operator.role, operator.name, operator.server) == (OPERATOR, "op", server.public)
    assert server.allowed.find(member.public) == Listed(MEMBER, "a")
    assert server.allowed.find(operator.public) == Listed(OPERATOR, "op")
    assert server.allowed.find(server.public) is None
    assert len({server.public, member.public, operator.public, keys.member("b").public}) == 4
    again = MemberKeys.from_text(member.to_text(), "pipe")
    assert again.client_options() == member.client_options()


def test_names_and_fingerprints_are_listed(keys: Keys) -> None:
    add_key(keys.directory, Listed(MEMBER, "c"))
    rows = list(listed_keys(keys.directory))
    assert [(listed.role, listed.name) for listed, _ in rows] == [
        ("lighthouse", ""),
        ("member", "a"),
        ("member", "b"),
        ("operator", "op"),
        ("member", "c"),
    ]


# --- nothing is overwritten


def test_a_directory_in_use_is_left_alone(keys: Keys, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in keys.directory.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="never overwritten"):
        make_directory(keys.directory, ["x"], [])
    with pytest.raises(UsageError, match="a: has a key already"):
        add_key(keys.directory, Listed(MEMBER, "a"))
    with pytest.raises(UsageError, match="op: has a key already"):
        add_key(keys.directory, Listed(MEMBER, "op"))
    assert {path: path.read_bytes() for path in keys.directory.rglob("*") if path.is_file()} == before
    (tmp_path / "empty").mkdir()
    make_directory(tmp_path / "empty", ["x"], [])
    assert read_server(tmp_path / "empty")


def test_a_key_that_could_not_be_listed_is_not_left_behind(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        add_key(keys.directory, Listed(MEMBER, "c"))
    monkeypatch.undo()
    assert not keys.path("c").exists()
    assert [path.name for path in keys.directory.iterdir() if path.name.startswith(".")] == []
    assert add_key(keys.directory, Listed(MEMBER, "c")) == keys.path("c")


def test_several_who_add_at_once_lose_nothing(keys: Keys) -> None:
    names = [f"m{n}" for n in range(8)]
    adding = [threading.Thread(target=add_key, args=(keys.directory, Listed(MEMBER, name))) for name in names]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    assert {Listed(MEMBER, name) for name in names} <= set(read_allowed(keys.directory / "allowed").values())


def test_a_name_belongs_to_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a: asked for twice"):
        make_directory(tmp_path / "keys", ["a", "b"], ["a"])
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "-x", "a b", "a\n", "ä", "x" * 101])
def test_a_name_is_one_of_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a key"):
        make_directory(tmp_path / "keys", [name], [])


def test_a_revoked_name_can_be_given_anew(keys: Keys) -> None:
    before = keys.member().public
    revoke_key(keys.directory, "a")
    assert not keys.path("a").exists()
    with pytest.raises(UsageError, match="no such key"):
        revoke_key(keys.directory, "a")
    add_key(keys.directory, Listed(MEMBER, "a"))
    assert keys.member().public != before
    assert set(read_allowed(keys.directory / "allowed").values()) == {
        Listed(MEMBER, "a"),
        Listed(MEMBER, "b"),
        Listed(OPERATOR, "op"),
    }


# --- what is refused


@pytest.mark.parametrize("open_to", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_none(keys: Keys, open_to: int) -> None:
    keys.path("a").chmod(open_to)
    with pytest.raises(ConfigError, match=f"permissions are {open_to:04o}; .*chmod 600 .*a.key"):
        keys.member()
    (keys.directory / "lighthouse.key").chmod(open_to)
    with pytest.raises(ConfigError, match=r"chmod 600 .*lighthouse\.key"):
        read_server(keys.directory)


def test_a_list_that_others_may_write_is_none(keys: Keys) -> None:
    allowed = keys.directory / "allowed"
    allowed.chmod(0o644)
    assert read_server(keys.directory)
    allowed.chmod(0o620)
    with pytest.raises(ConfigError, match=r"who may write it decides who comes in: chmod 600 .*allowed"):
        read_server(keys.directory)


def test_what_is_not_there(keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read .*procguard keys new"):
        read_server(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_member(tmp_path / "nowhere.key")
    (keys.directory / "allowed").unlink()
    with pytest.raises(ConfigError, match="allowed: cannot be read"):
        read_server(keys.directory)
    (keys.directory / "lighthouse.key").unlink()
    with pytest.raises(ConfigError, match=r"has no lighthouse\.key"):
        read_server(keys.directory)


def test_the_wrong_file(keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):  # a member's own file is no directory
        read_server(keys.path("a"))
    with pytest.raises(ConfigError, match="it should hold a line for each of role"):
        read_member(keys.directory / "lighthouse.key")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_member(keys.directory)


def test_files_that_make_no_sense_show_nothing_of_themselves(keys: Keys) -> None:
    path = keys.path("a")
    good = path.read_text()
    (secret,) = [line.split()[1] for line in good.splitlines() if line.startswith("secret")]
    other = keys.path("b").read_text()
    (other_secret,) = [line.split()[1] for line in other.splitlines() if line.startswith("secret")]
    broken = [
        good.replace(secret, secret[:-1]),
        good.replace(secret, secret[:-1] + "g"),
        good.replace("secret ", "sekret "),
        good + f"secret {secret}\n",
        good.replace(secret, other_secret),
        good.replace("role member", "role lighthouse"),
        good[:200],
        "",
        good + "x" * 5000,
        good + "ä",
    ]
    for text in broken:
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"^{path}: ") as refused:
            read_member(path)
        assert secret[:20] not in str(refused.value)
        assert other_secret[:20] not in str(refused.value)


@pytest.mark.parametrize(
    "line", ["member a", "member a b c", "boss a " + "0" * 64, "member a/b " + "0" * 64, "member a zz"]
)
def test_a_broken_list_names_its_line(keys: Keys, line: str) -> None:
    path = keys.directory / "allowed"
    path.write_text(f"# who\n{line}\n")
    with pytest.raises(ConfigError, match="allowed, line 2: "):
        read_allowed(path)


def test_a_key_stands_once_in_the_list(keys: Keys) -> None:
    path = keys.directory / "allowed"
    path.write_text(f"member a {'0' * 64}\noperator b {'0' * 64}\n")
    with pytest.raises(ConfigError, match="line 2: this key is listed already"):
        read_allowed(path)


def test_a_machine_without_curve_says_so(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda capability: False)
    for attempt in (keys.member, lambda: keys.server, lambda: Keys(keys.directory / "more")):
        with pytest.raises(ConfigError, match="built without CURVE"):
            attempt()


# --- which file is meant


def test_a_members_variable_may_name_its_file_or_the_directory(keys: Keys) -> None:
    assert find_member(keys.path("b"), "a") == keys.path("b")
    assert find_member(keys.directory, "a") == keys.path("a")
    with pytest.raises(ConfigError, match=r"no key for replica_id 'zz'; it has a, b\. PROCGUARD_KEYS may"):
        find_member(keys.directory, "zz")
    with pytest.raises(ConfigError, match="no key for replica_id"):
        find_member(keys.directory, "../operators/op")


def test_at_a_keyboard_the_directory_means_the_only_operator(keys: Keys) -> None:
    assert find_person(keys.path("a")) == keys.path("a")
    assert find_person(keys.directory) == keys.path("op", OPERATOR)
    second = add_key(keys.directory, Listed(OPERATOR, "ann"))
    with pytest.raises(ConfigError, match=r"several operators \(ann, op\): name the file of yours"):
        find_person(keys.directory)
    for path in (second, keys.path("op", OPERATOR)):
        path.unlink()
    assert find_person(keys.directory) == keys.path("a")


# --- a list that changes


def test_the_list_is_read_again_when_it_has_changed(keys: Keys) -> None:
    allowed = AllowList(keys.directory / "allowed")
    a = keys.member()
    assert allowed.refresh() == ""
    c = read_member(add_key(keys.directory, Listed(MEMBER, "c")))
    assert allowed.find(c.public) is None
    assert "1 added (c), 4 keys" in allowed.refresh()
    assert allowed.find(c.public) == Listed(MEMBER, "c")
    revoke_key(keys.directory, "a")
    assert "1 revoked (a), 3 keys" in allowed.refresh()
    assert allowed.find(a.public) is None
    assert allowed.refresh() == ""


def test_a_list_that_broke_leaves_the_one_before_in_force(keys: Keys) -> None:
    path = keys.directory / "allowed"
    allowed = AllowList(path)
    path.write_text("half a li")
    assert "could not be read again, the one before stays in force" in allowed.refresh()
    assert allowed.refresh() == "", "said once"
    assert allowed.find(keys.member().public)
    path.unlink()
    assert "stays in force" in allowed.refresh()


def test_no_secret_is_in_any_words(keys: Keys) -> None:
    shown = " ".join([repr(keys.member()), repr(keys.server), repr(keys.member().as_server())])
    assert fingerprint(keys.member().public) in shown
    assert not [secret for secret in keys.secrets() if secret in shown]
