"""When a worker counts as healthy, and when as failed: the rules, one ``Patient`` for each worker.

``step(event, now) -> effects``. The monitor turns what it hears and measures into events, and performs the
effects: measure, ask the health URL, report a failure. ``due`` says when the next ``Tick`` is wanted. All
times are seconds of one monotonic clock; no clock, file or process is touched here.

=========================================  ===========================================================
what is seen                               what it means
=========================================  ===========================================================
the process ended, by its own fault        DEAD, or ZOMBIE while nobody has reaped it: at once
it ended cleanly, or because we stopped it STOPPED, no failure
silence of a worker that has ever beaten   UNRESPONSIVE after ``heartbeat_timeout_s``
``WATCHDOG=trigger``                       UNRESPONSIVE at once: it says so itself
the URL fails, so many times in a row      UNHEALTHY; failures of the start period do not count until
                                           an answer was good
CPU and memory below both thresholds, and  UNRESPONSIVE when that lasted for ``heartbeat_timeout_s``; only
neither beat, output nor good answer       with ``idle_fails``, never in the start period
not ready at the end of the start period   UNRESPONSIVE, only for a worker that promised ``READY=1``
``STOPPING=1``, and still there            UNRESPONSIVE after ``stop_timeout_s``
=========================================  ===========================================================

A worker is failed once in a life: a second verdict is passed only after it has shown itself well again. One
that has never beaten is not failed for want of beats. The monitor's own stall (``Resumed``) fails nobody:
every deadline starts anew.
"""

from __future__ import annotations

import math
from dataclasses import replace

from procguard.supervisor.health_words import (
    AskUrl,
    Beat,
    BeatTimeout,
    Cause,
    Effect,
    Ended,
    Event,
    Extended,
    Failed,
    HealthStatus,
    Ready,
    Recovered,
    Resumed,
    Rules,
    Sample,
    Sampled,
    Spoke,
    Started,
    Stopping,
    Tick,
    Triggered,
    UrlAnswered,
    UrlBegun,
)
from procguard.supervisor.idleness import Idleness
from procguard.supervisor.url_patience import UrlPatience

SAMPLES_PER_TIMEOUT = 4
"""An idle time is made of so many samples at most: more would cost CPU and see nothing else."""

_STATUS = {
    Cause.DIED: HealthStatus.DEAD,
    Cause.DEFUNCT: HealthStatus.ZOMBIE,
    Cause.NO_HEARTBEAT: HealthStatus.UNRESPONSIVE,
    Cause.WATCHDOG_TRIGGERED: HealthStatus.UNRESPONSIVE,
    Cause.URL_FAILS: HealthStatus.UNHEALTHY,
    Cause.IDLE: HealthStatus.UNRESPONSIVE,
    Cause.NOT_READY: HealthStatus.UNRESPONSIVE,
    Cause.NOT_STOPPING: HealthStatus.UNRESPONSIVE,
}


class Patient:
    """The health of one worker."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.pid: int | None = None
        self.started_at: float | None = None
        self.verdict: Failed | None = None
        self._stopping_since: float | None = None
        self._beaten_at: float | None = None
        self._sample_due: float | None = None
        self._url: UrlPatience | None = None
        self._extended_until = -math.inf
        self._begin(None)

    # --- what there is to know ---

    def status(self, now: float) -> HealthStatus:
        """How it is at this moment."""
        if self.verdict is not None:
            return self.verdict.status
        if self._stopped:
            return HealthStatus.STOPPED
        if not self._alive:
            return HealthStatus.UNKNOWN
        return HealthStatus.STARTING if self._is_starting(now) else HealthStatus.HEALTHY

    def reasons(self) -> tuple[str, ...]:
        """Why it is not, or soon will not be, healthy; for people."""
        if self.verdict is not None:
            return (self.verdict.text,)
        if self._url is not None and self._url.failures:
            return (f"{self._url.failures} of its last health checks failed: {self._url.text}",)
        return ()

    def due(self) -> float | None:
        """When the next ``Tick`` is wanted; None while nothing is."""
        if not self._alive:
            return None
        url_due = self._url.due() if self._url is not None else None
        times = (self._beat_due(), self._ready_due(), self._stop_due(), self._start_due(), url_due)
        return min((time for time in (*times, self._sample_due) if time is not None), default=None)

    def beats(self) -> bool:
        """Whether it has ever beaten in this life."""
        return self._beaten_at is not None

    # --- what happens ---

    def step(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Take in one event; returns what should be done."""
        match event:
            case Started():
                self.pid = event.pid
                self._begin(now)
                self._ready = event.adopted
                return ()
            case Ended():
                return self._end(event, now)
            case Beat():
                return self._beat(now)
        return self._step_alive(event, now) if self._alive else ()  # else word of a life that is over

    def _step_alive(self, event: Event, now: float) -> tuple[Effect, ...]:
        match event:
            case Ready():
                self._ready = True
                return self._sign_of_life(Cause.NOT_READY)
            case Spoke():
                self._speaks = True
                return self._sign_of_life()
            case Stopping():
                self._stopping_since = now
                self._sample_due = None
            case Triggered():
                return self._fail(Cause.WATCHDOG_TRIGGERED, "it asked to be failed (WATCHDOG=trigger)")
            case BeatTimeout():
                self._beat_timeout_s = event.timeout_s
                return self._beat(now)
            case Extended():
                self._speaks, self._start_over = True, False
                self._extended_until = max(self._extended_until, now + event.extra_s)
            case Sampled():
                return self._sampled(event, now)
            case UrlBegun() | UrlAnswered():
                return self._url_event(event, now)
            case Tick():
                return self._tick(now)
            case Resumed():
                self._restart_deadlines(now)
        return ()

    def _begin(self, now: float | None) -> None:
        """All that belongs to one life."""
        rules = self.rules
        self.started_at = now
        self.verdict = None
        self._alive = now is not None
        self._stopped = False
        self._ready = False
        self._speaks = False
        self._stopping_since = self._beaten_at = None
        self._beat_timeout_s = rules.heartbeat_timeout_s
        self._start_until = (now or 0.0) + rules.start_period_s
        self._start_over = False
        """Nothing waits for the end of the start period any more."""
        self._extended_until = -math.inf
        self._idle = Idleness(rules)
        asked = self._url.number if self._url is not None else 0
        self._url = UrlPatience(rules.url, now, asked) if rules.url and now is not None else None
        samples = rules.idle_fails and self._alive and self.pid is not None
        self._sample_due = self._grid(self._start_until) if samples else None

    def _end(self, event: Ended, now: float) -> tuple[Effect, ...]:
        if not self._alive and self.started_at is not None:
            return ()
        self._alive = False
        if self.started_at is None:
            self.started_at = now  # before we came
        if not event.failed:
            self._stopped, self.verdict = True, None
            return ()
        cause = Cause.DEFUNCT if event.defunct else Cause.DIED
        if self.verdict is not None:  # told already; that it hung says more than that it is dead now
            self.verdict = replace(self.verdict, status=_STATUS[cause])
            return ()
        return self._fail(cause, event.text)

    def _beat(self, now: float) -> tuple[Effect, ...]:
        if not self._alive:
            if self.started_at is not None:
                return ()  # a beat that was under way when the process ended
            self._begin(now)  # somewhere else, out of our sight
        self._beaten_at = now if self._beaten_at is None else max(now, self._beaten_at)
        self._sample_due = None  # from here on its beats say more than its CPU time
        return self._sign_of_life(Cause.NO_HEARTBEAT, Cause.IDLE)

    def _sign_of_life(self, *cures: Cause) -> tuple[Effect, ...]:
        self._idle.interrupt()
        if self.verdict is None or self.verdict.cause not in cures:
            return ()
        self.verdict = None
        return (Recovered(),)

    def _fail(self, cause: Cause, text: str) -> tuple[Effect, ...]:
        if self.verdict is not None:
            return ()
        self.verdict = Failed(_STATUS[cause], cause, text)
        return (self.verdict,)

    def _restart_deadlines(self, now: float) -> None:
        if self._beaten_at is not None:
            self._beaten_at = now
        if self._stopping_since is not None:
            self._stopping_since = now
        if not self._start_over and not self._ready:
            self._start_until = max(self._start_until, now + self.rules.start_period_s)
            if self._sample_due is not None:
                self._sample_due = self._grid(self._start_until)
        self._idle.interrupt()
        if self._url is not None:
            self._url.restart(now)

    # --- time ---

    def _tick(self, now: float) -> tuple[Effect, ...]:
        effects: tuple[Effect, ...] = ()
        self._start_over |= now >= max(self._start_until, self._extended_until)
        if _over(self._beat_due(), now):
            text = f"no heartbeat for {self._beat_timeout_s:.1f} s"
            effects += self._fail(Cause.NO_HEARTBEAT, text)
        if _over(self._ready_due(), now):
            text = f"not ready {self.rules.start_period_s:.1f} s after its start"
            effects += self._fail(Cause.NOT_READY, text)
        if _over(self._stop_due(), now):
            text = f"said that it is stopping, and still runs {self.rules.stop_timeout_s:.1f} s later"
            effects += self._fail(Cause.NOT_STOPPING, text)
        if _over(self._sample_due, now):
            self._sample_due = self._grid(now)
            effects += (Sample(),)
        if self._url is not None and self._url.due() <= now:
            effects += self._url_tick(self._url, now)
        return effects

    def _beat_due(self) -> float | None:
        if self._beaten_at is None or self._stopping_since is not None or self.verdict is not None:
            return None
        return max(self._beaten_at + self._beat_timeout_s, self._extended_until)

    def _ready_due(self) -> float | None:
        if not self.rules.ready_expected or self._ready or self.verdict is not None:
            return None
        return max(self._start_until, self._extended_until)

    def _stop_due(self) -> float | None:
        if self._stopping_since is None or self.verdict is not None:
            return None
        return max(self._stopping_since + self.rules.stop_timeout_s, self._extended_until)

    def _start_due(self) -> float | None:
        """When it counts as started, if that is to be told."""
        if self._start_over or not (self.rules.ready_expected or self._speaks or self._url is not None):
            return None
        return max(self._start_until, self._extended_until)

    def _is_starting(self, now: float) -> bool:
        """It has told, or promised to tell, that it becomes ready, and has not yet."""
        if now >= max(self._start_until, self._extended_until) or self._ready or self.beats():
            return False
        url_missing = self._url is not None and not self._url.ever_good
        return url_missing or self.rules.ready_expected or self._speaks

    def _grid(self, now: float) -> float:
        """The next time for a sample: alike for all workers, so that one wake serves them all."""
        interval = max(
            self.rules.sample_interval_s, self.rules.heartbeat_timeout_s / SAMPLES_PER_TIMEOUT, 0.001
        )
        due = (math.floor(now / interval) + 1) * interval
        return due if due > now else due + interval

    # --- idleness ---

    def _sampled(self, event: Sampled, now: float) -> tuple[Effect, ...]:
        if self._sample_due is None:
            return ()
        if not event.whole_tree:
            look_closer = self._idle.root(event.usage, now)
            recovered = self._sign_of_life(Cause.IDLE) if self._idle.busy else ()
            return (Sample(whole_tree=True),) if look_closer else recovered
        idle_s = self._idle.tree(event.usage, now)
        if idle_s is None or now < self._extended_until:
            return ()
        return self._fail(
            Cause.IDLE,
            f"neither heartbeat nor output for {idle_s:.1f} s, "
            f"CPU below {self.rules.cpu_threshold_percent:g} %, "
            f"memory below {self.rules.memory_threshold_bytes / (1 << 20):.0f} MiB",
        )

    # --- the health URL ---

    def _url_event(self, event: UrlBegun | UrlAnswered, now: float) -> tuple[Effect, ...]:
        if self._url is None:
            return ()
        if isinstance(event, UrlBegun):
            self._url.begun(event.number, now)
            return ()
        return self._judge_url(self._url.answered(event, counts=self._url_counts(now)))

    def _url_tick(self, url: UrlPatience, now: float) -> tuple[Effect, ...]:
        if url.overdue(now):
            url.advance(now)
            return self._judge_url(url.give_up(counts=self._url_counts(now)))
        number = url.next(now)
        if number is not None:
            return (AskUrl(number),)
        return self._judge_url(url.give_up(counts=self._url_counts(now))) if url.stuck else ()

    def _url_counts(self, now: float) -> bool:
        started = now >= max(self._start_until, self._extended_until)
        return started or (self._url is not None and self._url.ever_good)

    def _judge_url(self, good: bool | None) -> tuple[Effect, ...]:
        if good is None or self._url is None or self._stopping_since is not None:
            return ()
        if good:
            return self._sign_of_life(Cause.URL_FAILS, Cause.IDLE)
        if self._url.failures < self._url.rule.failures_max:
            return ()
        text = f"{self._url.failures} health checks in a row failed; the last one: {self._url.text}"
        return self._fail(Cause.URL_FAILS, text)


def _over(due: float | None, now: float) -> bool:
    return due is not None and due <= now
