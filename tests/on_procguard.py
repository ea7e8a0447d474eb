"""A pytest plugin, ``-p tests.on_procguard``: puts torchft on ProcGuard before any test is loaded."""

from __future__ import annotations

import torchft.manager

from procguard.adapters import torchft as on_procguard

on_procguard.install()
assert torchft.manager.ManagerServer is on_procguard.ManagerServer
