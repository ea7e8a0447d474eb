"""``procguard-lighthouse``: settings, epoch, ports, loop, in this order; a clean end on SIGINT and SIGTERM.

Whatever cannot work is one message on stderr that names the thing and the remedy, and exit code 2.

A command line that was written for torchft's lighthouse works: every flag may be spelled with underscores,
``--bind`` may hold the port, and the two intervals at which torchft looks around are accepted and, as nothing
is looked for at intervals here, answered with a remark.
"""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click

from procguard.adapters.scheduling import run_promptly
from procguard.adapters.zmq import ZmqLighthouseTransport
from procguard.adapters.zmq_key_files import read_server
from procguard.env import Address
from procguard.errors import ProcGuardError, StateError
from procguard.lighthouse.core import Core
from procguard.lighthouse.epoch_file import EpochFile, default_directory, first_epoch
from procguard.lighthouse.roster import Options
from procguard.lighthouse.service import Service
from procguard.lighthouse_config import LighthouseConfig, load_lighthouse_config
from procguard.log_lines import written_log
from procguard.messages import Settings

logger = logging.getLogger("procguard.lighthouse")  # under python -m, __name__ is another


_TICKS = ("quorum_tick_ms", "failure_tick_ms")
"""torchft's, without a meaning here."""


class _CannotStart(click.ClickException):
    exit_code = 2


def _with_hyphens(name: str) -> str:
    return name.replace("_", "-")


def _setting(key: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The flag of one configuration key: type and default are the model's, and None is "not given"."""
    field = LighthouseConfig.model_fields[key]
    default = field.default
    kind = type(default) if isinstance(default, int) else str
    choices = get_args(field.annotation) if kind is str and default else ()
    return click.option(
        "--" + _with_hyphens(key),
        key,
        type=click.Choice(choices) if choices else kind,
        is_flag=kind is bool,
        default=None,
        help=f"{text}  [default: {default}]" if default else text,
    )


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _with_hyphens}
)
@click.option("--config", type=click.Path(path_type=Path), help="YAML file; flags and variables go over it.")
@_setting("port", "Port for the trainers; notices use the next one. 0: the kernel chooses both.")
@_setting("bind", "IP address to listen on, alone or with the port: [::]:29510.")
@_setting("keys", "Directory made by `procguard keys new`: only those whom it lists are let in.")
@_setting("insecure", "Allow --bind beyond this machine though nobody is asked for a key.")
@_setting("min_replicas", "Replica groups that a quorum needs at least.")
@_setting("heartbeat_interval_ms", "Time between two heartbeats of a replica.")
@_setting("heartbeat_timeout_ms", "Silence after which a replica has failed.")
@_setting("thread_heartbeat_timeout_ms", "The same for replicas whose trainer itself beats, in a thread.")
@_setting("disconnect_grace_ms", "How long a replica may take to reconnect.")
@_setting("join_timeout_ms", "How long a quorum waits for live replicas that have not asked to join.")
@_setting("state_dir", "Directory that remembers the number of the last start.")
@_setting("log_format", "Log as text, or as JSON objects, one a line.")
@_setting("log_level", "The least that is logged.")
@click.option("--quorum-tick-ms", type=int, hidden=True)
@click.option("--failure-tick-ms", type=int, hidden=True)
@click.version_option(package_name="procguard")
def main(config: Path | None, **flags: object) -> None:
    """Coordinate replicas: hear their heartbeats, tell all of a failure at once, agree on who goes on.

    Each flag is also a variable (PROCGUARD_LIGHTHOUSE_MIN_REPLICAS=2) and a key of the --config file.
    """
    ticks = [f"--{key}" for key in _TICKS if flags.pop(key) is not None]
    try:
        settings = load_lighthouse_config(config, flags)
        with written_log(settings.log_format, settings.log_level):
            if ticks:
                logger.info("Nothing ticks here, decisions follow events: %s ignored", " and ".join(ticks))
            _serve(settings)
    except ProcGuardError as error:
        raise _CannotStart(str(error)) from None


def _serve(config: LighthouseConfig) -> None:
    """Run until a signal says stop."""
    run_promptly()
    gc.freeze()  # a collection need not look at what was imported: 5 ms that members might wait for
    with contextlib.ExitStack() as stack:
        keys = read_server(config.keys) if config.keys else None
        state = _open_state(config)
        if state:
            stack.callback(state.close)
        transport = ZmqLighthouseTransport(config.bind, config.port, keys)
        stack.enter_context(contextlib.closing(transport))
        epoch = state.epoch if state else first_epoch(_wall_clock_ms())
        options = Options(
            _cluster_settings(config),
            config.min_replicas,
            transport.notice_port,
            bool(state and state.restarted),
        )
        core = Core(options, epoch, time.monotonic())
        service = Service(core, transport, state.persist if state else lambda epoch: None)
        with _stop_signals(transport.wake) as received:
            _announce(config, transport, epoch)
            service.run(stop=lambda: bool(received))
        logger.info("Lighthouse stopped by %s", signal.Signals(received[0]).name)


def _open_state(config: LighthouseConfig) -> EpochFile | None:
    """The state directory. One that was asked for must work; without the default one a lighthouse can do."""
    if config.state_dir is not None:
        return _opened(config.state_dir)
    if config.port == 0:  # another port at each start: nobody to remember
        return None
    directory = default_directory(config.port, os.environ)
    if directory is None:
        logger.warning("No home directory: the epoch is taken from the clock alone; see --state-dir")
        return None
    try:
        return _opened(directory)
    except StateError as error:
        logger.warning("Going on without a state directory, with the epoch from the clock alone: %s", error)
        return None


def _opened(directory: Path) -> EpochFile:
    state = EpochFile(directory, _wall_clock_ms())
    if state.set_aside:
        logger.warning("%s could not be understood and was set aside as %s", state.path, state.set_aside)
    return state


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _cluster_settings(config: LighthouseConfig) -> Settings:
    return Settings(
        config.heartbeat_interval_ms / 1000,
        config.heartbeat_timeout_ms / 1000,
        config.thread_heartbeat_timeout_ms / 1000,
        config.disconnect_grace_ms / 1000,
        config.join_timeout_ms / 1000,
    )


@contextlib.contextmanager
def _stop_signals(wake: Callable[[], None]) -> Iterator[list[int]]:
    """While it lasts, SIGINT and SIGTERM are collected here, and the first one wakes the loop."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            wake()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, receive)
    yield received


def _announce(config: LighthouseConfig, transport: ZmqLighthouseTransport, epoch: int) -> None:
    everywhere = ipaddress.ip_address(config.bind).is_unspecified
    address = Address(socket.gethostname() if everywhere else config.bind, transport.port)
    fields = {"address": str(address), "port": transport.port, "notice_port": transport.notice_port}
    logger.info(
        "Lighthouse listening on %s, notices on port %d, epoch %d",
        Address(config.bind, transport.port),
        transport.notice_port,
        epoch,
        extra={"fields": {**fields, "epoch": epoch}},
    )
    logger.info("In each trainer: export PROCGUARD_LIGHTHOUSE=%s", address)
    if config.keys:
        logger.info(
            "Keys are asked for: each trainer needs PROCGUARD_KEYS=NAME.key, one of %s/members", config.keys
        )
    elif not ipaddress.ip_address(config.bind).is_loopback:
        logger.warning(
            "Insecure: nobody is asked for a key, so whoever reaches these ports can make replicas fail"
        )


if __name__ == "__main__":
    main()
