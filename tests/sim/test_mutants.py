"""The simulator notices broken code; that each mutant can still be made is looked at for all."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import textwrap

import pytest

from procguard.sim.mutants import MUTANTS, PACKAGE, Mutant, hunt

QUICK = ("an old answer is given to a new round", "a healing replica's gradient counts")


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_can_be_made(mutant: Mutant) -> None:
    module, _, qualified = mutant.where.partition(":")
    found = importlib.import_module(f"{PACKAGE}.{module}")
    for name in qualified.split("."):
        found = getattr(found, name)
    assert textwrap.dedent(inspect.getsource(found)).count(mutant.text) == 1
    assert mutant.text != mutant.instead


def test_there_are_twenty_and_more_of_them_with_different_names() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_a_mutant_is_caught() -> None:
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        caught = [each.invariant for each in pool.imap(hunt, QUICK)]
    assert caught == ["stuck", "same-state"]
