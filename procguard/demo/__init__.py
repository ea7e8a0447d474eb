"""``procguard demo``: real replicas are killed and stopped before one's eyes, and the job goes on.

``story`` says what happens, ``chronicle`` what became of it, ``report`` what it means; these three are pure.
``run`` plays a story with real ``processes`` and a ``view``; ``command`` is the door. ``train_digits`` is the
file of the same name in ``examples/``, linked here so that an installed ProcGuard has it, too.
"""
