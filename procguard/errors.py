"""Every exception ProcGuard raises, in one tree.

::

    ProcGuardError
    ├── UsageError (ValueError)              the caller's mistake: names the thing, the value, the remedy
    │   └── ConfigError                      ... in a YAML file or a variable: names the key's path
    ├── ProtocolError                        a peer's mistake: its frame is dropped and counted
    ├── StateError                           a state file or directory that cannot be used
    ├── LighthouseError
    │   ├── LighthouseUnreachable (ConnectionError)   nobody answered in time
    │   ├── LighthouseRejected               it answered, and said no
    │   └── QuorumTimeout (TimeoutError)     no quorum in time; says what it waited for
    ├── GuardError                           a guard could not, or would not, do what was asked
    │   └── GuardUnreachable (ConnectionError)   none runs where one was looked for, or it did not answer
    ├── CollectiveError                      a collective operation failed; carries its quorum id
    │   ├── CollectiveAborted                ... because ``abort(quorum_id)`` was called
    │   └── CollectiveTimeout (TimeoutError) ... because a peer did not answer in time
    ├── CheckpointError                      a state dict could not be sent, fetched or trusted
    │   └── UnsupportedState (TypeError)     ... because of an object in it: names the object's key path
    └── ReplicaGroupLost                     another rank of one's own replica group died

Which one to raise: what a peer can cause is ``ProtocolError``, what the caller can cause is
``UsageError``, what only ProcGuard itself can cause is an ``assert``.
"""

from __future__ import annotations


class ProcGuardError(Exception):
    """Root of the tree: ``except ProcGuardError`` catches all that ProcGuard raises."""


class UsageError(ProcGuardError, ValueError):
    """The caller passed something that cannot work."""


class ConfigError(UsageError):
    """A configuration file or an environment variable holds something that cannot work."""


class ProtocolError(ProcGuardError):
    """A frame from a peer that is not a valid message."""


class StateError(ProcGuardError):
    """A state file or directory that cannot be used; the message names the path and the remedy."""


class LighthouseError(ProcGuardError):
    """The lighthouse could not, or would not, do what was asked."""


class LighthouseUnreachable(LighthouseError, ConnectionError):
    """No lighthouse answered at the address within the connect timeout."""


class LighthouseRejected(LighthouseError):
    """The lighthouse answered and refused, for example because the replica id is in use."""


class QuorumTimeout(LighthouseError, TimeoutError):
    """No quorum within the quorum timeout; the message says what the lighthouse was waiting for."""


class GuardError(ProcGuardError):
    """The guard could not, or would not, do what was asked."""


class GuardUnreachable(GuardError, ConnectionError):
    """No guard runs where one was looked for, or it did not answer in time."""


class CollectiveError(ProcGuardError):
    """A collective operation failed.

    ``quorum_id`` is the packed id of the quorum in which it ran, so that an error of an old
    quorum is never taken for one of the present.
    """

    def __init__(self, message: str, quorum_id: int) -> None:
        super().__init__(message)
        self.quorum_id = quorum_id


class CollectiveAborted(CollectiveError):
    """The operation was ended by ``abort(quorum_id)``."""


class CollectiveTimeout(CollectiveError, TimeoutError):
    """A peer did not take part within the timeout."""


class CheckpointError(ProcGuardError):
    """A state dict could not be sent, fetched, verified or loaded."""


class UnsupportedState(CheckpointError, TypeError):
    """The state dict holds an object that cannot be sent; the message names its key path."""


class ReplicaGroupLost(ProcGuardError):
    """Another rank of this replica group died: the group must be restarted as a whole."""
