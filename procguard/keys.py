"""``procguard keys``: make, add, revoke and list the keys of a cluster.

Secrets are written to files and shown nowhere; what is printed are names and fingerprints of public keys.
docs/security.md says what keys protect from, and how to hand them out.
"""

from __future__ import annotations

from pathlib import Path

import click

from procguard.adapters.zmq_key_files import (
    FOLDERS,
    SUFFIX,
    add_key,
    listed_keys,
    make_directory,
    revoke_key,
)
from procguard.adapters.zmq_keys import MEMBER, OPERATOR, VARIABLE, Listed, fingerprint

_MEMBERS = "--members"


class _Lists(click.Command):
    """Lets one flag take all the names that follow it: ``--members a b c``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spelled: list[str] = []
        listing, named = False, 0
        for word in args:
            if word.startswith("-"):
                flag, given, _ = word.partition("=")
                listing, named = flag == _MEMBERS, int(bool(given))
            elif listing:
                if named:
                    spelled.append(_MEMBERS)
                named += 1
            spelled.append(word)
        return super().parse_args(ctx, spelled)


_directory = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


@click.group()
def keys() -> None:
    """Make and list the keys by which lighthouse and members know each other."""


@keys.command(cls=_Lists)
@_directory
@click.option(
    "--members",
    multiple=True,
    required=True,
    metavar="NAME...",
    help="Replicas that get a key, by REPLICA_ID.",
)
@click.option(
    "--operator", "operators", multiple=True, metavar="NAME", help="One who may `procguard kill`; repeatable."
)
def new(directory: Path, members: tuple[str, ...], operators: tuple[str, ...]) -> None:
    """Make all keys of a new cluster in DIR, which must not exist yet or be empty.

    \b
    procguard keys new keys --members a b c --operator me
    """
    make_directory(directory, members, operators)
    _show(directory)
    first = directory / FOLDERS[MEMBER] / f"{members[0]}{SUFFIX}"
    click.echo(
        f"\nLighthouse:  procguard-lighthouse --keys {directory}\n"
        f"Each member: export {VARIABLE}={first}   (its own file; all ranks of a replica use the same)"
    )


@keys.command()
@_directory
@click.argument("name")
@click.option("--operator", is_flag=True, help="One who may `procguard kill`, instead of a member.")
def add(directory: Path, name: str, operator: bool) -> None:
    """Make one more key and list it; a running lighthouse lets it in within a second."""
    click.echo(add_key(directory, Listed(OPERATOR if operator else MEMBER, name)))


@keys.command()
@_directory
@click.argument("name")
def revoke(directory: Path, name: str) -> None:
    """Take a key off the list; a running lighthouse stops listening to it within a second."""
    revoke_key(directory, name)
    click.echo(f"{name} is no longer listed in {directory}")


@keys.command("list")
@_directory
def list_(directory: Path) -> None:
    """Names and fingerprints, never a secret."""
    _show(directory)


def _show(directory: Path) -> None:
    rows = [(listed.role, listed.name, fingerprint(public)) for listed, public in listed_keys(directory)]
    width = max(len(name) for _, name, _ in rows)
    for role, name, print_ in rows:
        click.echo(f"{role:<10}  {name:<{width}}  {print_}")
