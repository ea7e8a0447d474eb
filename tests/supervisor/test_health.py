"""The rules of health, each as a short story in virtual time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from procguard.supervisor.health import Patient
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
    UrlRule,
    Usage,
)

MIB = 1 << 20
RULES = Rules(memory_threshold_bytes=100 * MIB, sample_interval_s=1.0)
SILENT = Rules(idle_fails=False)


class Story:
    """A patient, a clock, and a process that uses CPU, memory and output as told."""

    def __init__(self, rules: Rules = RULES, *, started: bool = True, at: float = 1000.0) -> None:
        self.now = at
        self.patient = Patient(rules)
        self.failures: list[Failed] = []
        self.recoveries = 0
        self.questions: list[int] = []
        self.looks = {False: 0, True: 0}
        self.root = Usage(0.0, MIB, (1, 0))
        self.children = Usage(0.0, 0)
        if started:
            self.tell(Started(77))

    def tell(self, *events: Event) -> Story:
        for event in events:
            self._perform(self.patient.step(event, self.now))
        return self

    def advance(self, span_s: float, cpu: float = 0.0, child_cpu: float = 0.0, writes: bool = False) -> Story:
        """Let time pass from one due time to the next, while the process works at these rates."""
        end = self.now + span_s
        while self.now < end:
            due = self.patient.due()
            assert due is None or due > self.now, "due again at once: the loop would spin"
            until = end if due is None else min(due, end)
            spent = until - self.now
            written = (self.root.output[0], self.root.output[1] + writes)
            self.root = Usage(self.root.cpu_s + cpu * spent, self.root.memory_bytes, written)
            self.children = Usage(self.children.cpu_s + child_cpu * spent, self.children.memory_bytes)
            self.now = until
            if until == due:
                self.tell(Tick())
        return self

    def answer(self, good: bool) -> Story:
        """The last question is asked and answered."""
        return self.tell(
            UrlBegun(self.questions[-1]), UrlAnswered(self.questions[-1], good, "HTTP status 503")
        )

    @property
    def status(self) -> HealthStatus:
        return self.patient.status(self.now)

    @property
    def causes(self) -> list[Cause]:
        return [failure.cause for failure in self.failures]

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Failed():
                    self.failures.append(effect)
                case Recovered():
                    self.recoveries += 1
                case AskUrl():
                    self.questions.append(effect.number)
                case Sample():
                    self.looks[effect.whole_tree] += 1
                    usage = Usage(self.root.cpu_s, self.root.memory_bytes)
                    if effect.whole_tree:
                        usage = self.root
                        cpu_s = usage.cpu_s + self.children.cpu_s
                        memory = usage.memory_bytes + self.children.memory_bytes
                        usage = Usage(cpu_s, memory, usage.output)
                    self.tell(Sampled(usage, effect.whole_tree))


# --- life and death ---


def test_nothing_is_known_of_a_worker_that_never_started() -> None:
    story = Story(started=False)
    assert story.status is HealthStatus.UNKNOWN
    assert story.patient.due() is None


def test_a_worker_without_any_promise_is_healthy_at_once() -> None:
    assert Story().status is HealthStatus.HEALTHY


@pytest.mark.parametrize(
    ("ended", "status", "causes"),
    [
        (Ended(True, "exit code 3"), HealthStatus.DEAD, [Cause.DIED]),
        (Ended(True, "killed by SIGKILL", defunct=True), HealthStatus.ZOMBIE, [Cause.DEFUNCT]),
        (Ended(False, "exit code 0"), HealthStatus.STOPPED, []),
        (Ended(False, "stopped by operator", defunct=True), HealthStatus.STOPPED, []),
    ],
)
def test_the_end_of_a_process(ended: Ended, status: HealthStatus, causes: list[Cause]) -> None:
    story = Story().tell(ended)
    assert story.status is status
    assert story.causes == causes
    assert story.patient.due() is None


def test_a_worker_fails_once_in_a_life() -> None:
    story = Story(SILENT).tell(Beat()).advance(10.0)
    assert story.causes == [Cause.NO_HEARTBEAT]
    story.advance(100.0).tell(Ended(True, "killed by SIGKILL"))
    assert story.causes == [Cause.NO_HEARTBEAT]
    assert story.status is HealthStatus.DEAD
    assert story.patient.reasons() == ("no heartbeat for 10.0 s",)


def test_a_new_life_begins_without_the_old_ones_debts() -> None:
    story = Story(SILENT).tell(Beat()).advance(10.0).tell(Ended(True, "exit code 1"), Started(78))
    assert story.status is HealthStatus.HEALTHY
    assert story.advance(1000.0).causes == [Cause.NO_HEARTBEAT]


def test_word_of_a_life_that_is_over_counts_for_nothing() -> None:
    story = Story().tell(Ended(True, "exit code 1"))
    story.tell(
        Beat(),
        Ready(),
        Spoke(),
        Triggered(),
        Stopping(),
        Extended(5.0),
        Sampled(story.root),
        Ended(True, "x"),
    )
    assert story.causes == [Cause.DIED]
    assert story.status is HealthStatus.DEAD


# --- heartbeats ---


def test_who_has_never_beaten_is_not_failed_for_it() -> None:
    assert Story(SILENT).advance(10_000.0).causes == []


def test_who_has_beaten_once_must_go_on() -> None:
    story = Story(SILENT).advance(3.0).tell(Beat()).advance(9.999)
    assert story.status is HealthStatus.HEALTHY
    story.advance(0.001)
    assert story.status is HealthStatus.UNRESPONSIVE
    assert story.failures[0].hung


def test_each_beat_renews_the_deadline() -> None:
    story = Story(SILENT)
    for _ in range(100):
        story.tell(Beat()).advance(9.0)
    assert story.causes == []


def test_a_beat_brings_a_silent_worker_back_and_the_next_silence_fails_it_again() -> None:
    story = Story(SILENT).tell(Beat()).advance(20.0).tell(Beat())
    assert (story.status, story.recoveries) == (HealthStatus.HEALTHY, 1)
    assert story.advance(10.0).causes == [Cause.NO_HEARTBEAT] * 2


def test_a_worker_of_another_machine_lives_by_its_beats_alone() -> None:
    story = Story(RULES, started=False).tell(Beat())
    assert story.status is HealthStatus.HEALTHY
    assert story.advance(10.0).status is HealthStatus.UNRESPONSIVE
    assert story.tell(Beat()).status is HealthStatus.HEALTHY


def test_a_late_word_of_an_earlier_beat_does_not_shorten_the_lease() -> None:
    story = Story(SILENT).tell(Beat())
    story.patient.step(Beat(), story.now - 5.0)
    assert story.advance(9.9).causes == []


# --- what it says of itself ---


def test_a_worker_that_promised_ready_is_starting_until_it_is() -> None:
    story = Story(Rules(ready_expected=True, idle_fails=False))
    assert story.status is HealthStatus.STARTING
    assert story.advance(29.9).tell(Ready()).status is HealthStatus.HEALTHY
    assert story.advance(1000.0).causes == []


def test_a_worker_that_promised_ready_and_is_not_in_time_has_failed() -> None:
    story = Story(Rules(ready_expected=True, idle_fails=False)).advance(30.0)
    assert story.causes == [Cause.NOT_READY]
    assert story.tell(Ready()).status is HealthStatus.HEALTHY


def test_more_time_may_be_asked_for() -> None:
    story = Story(Rules(ready_expected=True, idle_fails=False)).advance(25.0).tell(Extended(60.0))
    assert story.advance(59.9).status is HealthStatus.STARTING
    assert story.advance(0.1).causes == [Cause.NOT_READY]


def test_more_time_holds_for_heartbeats_too() -> None:
    story = Story(SILENT).tell(Beat(), Extended(60.0)).advance(59.9)
    assert story.causes == []
    assert story.advance(0.1).causes == [Cause.NO_HEARTBEAT]


def test_who_speaks_before_it_is_ready_is_starting_for_the_start_period_at_most() -> None:
    story = Story(SILENT).tell(Spoke())
    assert story.status is HealthStatus.STARTING
    assert story.advance(30.0).status is HealthStatus.HEALTHY
    assert story.causes == []


def test_a_worker_may_ask_to_be_failed() -> None:
    assert Story().tell(Triggered()).causes == [Cause.WATCHDOG_TRIGGERED]


def test_a_worker_may_set_its_own_heartbeat_timeout() -> None:
    story = Story(SILENT).tell(BeatTimeout(60.0)).advance(59.9)
    assert story.causes == []
    assert story.advance(0.1).failures[0].text == "no heartbeat for 60.0 s"


def test_who_says_that_it_stops_owes_no_beats_but_an_end() -> None:
    story = Story(Rules(stop_timeout_s=20.0)).tell(Beat(), Stopping()).advance(19.9)
    assert story.causes == []
    assert story.advance(0.1).causes == [Cause.NOT_STOPPING]


def test_who_says_that_it_stops_and_does_is_no_failure() -> None:
    story = Story().tell(Beat(), Stopping()).advance(5.0).tell(Ended(False, "exit code 0")).advance(100.0)
    assert (story.status, story.causes) == (HealthStatus.STOPPED, [])


# --- idleness ---


def test_idle_for_a_whole_timeout_after_the_start_period_is_unresponsive() -> None:
    story = Story().advance(30.0)
    assert story.advance(10.0).causes == []
    assert story.advance(8.0).causes == [Cause.IDLE]
    assert story.status is HealthStatus.UNRESPONSIVE


def test_nobody_is_idle_in_its_start_period() -> None:
    story = Story(Rules(start_period_s=600.0, memory_threshold_bytes=100 * MIB)).advance(610.0)
    assert story.causes == []
    assert story.advance(10.0).causes == [Cause.IDLE]


def test_without_zombie_detection_nobody_is_idle() -> None:
    story = Story(SILENT).advance(1000.0)
    assert (story.causes, story.looks[False]) == ([], 0)


def test_cpu_at_the_threshold_is_not_idle() -> None:
    assert Story().advance(1000.0, cpu=0.0101).causes == []
    assert Story().advance(1000.0, cpu=0.0099).causes == [Cause.IDLE]


def test_memory_at_the_threshold_is_not_idle() -> None:
    story = Story()
    story.root = Usage(0.0, 100 * MIB, (1, 0))
    assert story.advance(1000.0).causes == []


def test_output_is_a_sign_of_life() -> None:
    assert Story().advance(1000.0, writes=True).causes == []


def test_who_fell_silent_after_its_last_output_is_found() -> None:
    story = Story().advance(1000.0, writes=True).advance(26.0)
    assert story.causes == [Cause.IDLE]


def test_a_moment_of_work_begins_the_idle_time_anew() -> None:
    story = Story().advance(38.0)
    assert story.advance(3.0, cpu=1.0).advance(9.0).causes == []
    assert story.advance(7.0).causes == [Cause.IDLE]


def test_a_shell_that_waits_for_its_trainer_is_not_hung() -> None:
    story = Story().advance(1000.0, child_cpu=0.5)
    assert story.causes == []
    assert story.looks[True] < 200 < story.looks[False]
    assert story.advance(30.0).causes == [Cause.IDLE]


def test_memory_of_children_counts_and_their_tree_is_not_looked_at_all_the_time() -> None:
    story = Story()
    story.children = Usage(0.0, 500 * MIB)
    assert story.advance(1000.0).causes == []
    assert story.looks[True] <= 110


def test_who_beats_is_never_sampled() -> None:
    story = Story().tell(Beat())
    for _ in range(100):
        story.advance(5.0).tell(Beat())
    assert (story.causes, story.looks) == ([], {False: 0, True: 0})


@pytest.mark.parametrize("word", [Ready(), Spoke()])
def test_a_word_of_its_own_is_a_sign_of_life(word: Event) -> None:
    story = Story().advance(30.0)
    for _ in range(20):
        story.advance(9.0).tell(word)
    assert story.causes == []


def test_what_cannot_be_seen_is_not_idle() -> None:
    story = Story()
    story.root = Usage(0.0, 0)
    patient, now = story.patient, story.now
    for _ in range(100):
        now = patient.due() or now
        effects = patient.step(Tick(), now)
        assert effects == (Sample(),)
        assert patient.step(Sampled(None), now) == ()


def test_an_idle_worker_that_works_again_is_well() -> None:
    story = Story().advance(60.0)
    assert story.causes == [Cause.IDLE]
    assert story.advance(3.0, cpu=1.0).status is HealthStatus.HEALTHY


# --- the health URL ---

URL = UrlRule(interval_s=5.0, timeout_s=2.0, failures_max=3)
SERVER = Rules(idle_fails=False, url=URL, start_period_s=30.0)


def asked(story: Story) -> Story:
    """Serve what is due right now, as the loop does."""
    return story.tell(Tick()) if (story.patient.due() or 0.0) <= story.now else story


def test_a_server_is_starting_until_its_first_good_answer_or_the_end_of_the_period() -> None:
    story = asked(Story(SERVER))
    assert (story.questions, story.status) == ([1], HealthStatus.STARTING)
    assert story.answer(True).status is HealthStatus.HEALTHY
    assert asked(Story(SERVER)).advance(29.9).status is HealthStatus.STARTING
    assert asked(Story(SERVER)).advance(30.0).status is HealthStatus.HEALTHY


def test_a_stall_of_the_monitor_is_not_the_servers_timeout() -> None:
    story = asked(Story(SERVER)).answer(True).advance(5.0).tell(UrlBegun(2))
    story.now += 600.0
    story.tell(Resumed(), Tick())
    assert story.patient.reasons() == ()
    assert story.advance(2.0).patient.reasons() != ()


def test_good_answers_keep_it_healthy() -> None:
    story = asked(Story(SERVER)).answer(True)
    assert story.status is HealthStatus.HEALTHY
    for _ in range(50):
        story.advance(5.0).answer(True)
    assert story.questions == list(range(1, 52))
    assert story.causes == []


def test_failures_in_a_row_make_it_unhealthy() -> None:
    story = asked(Story(SERVER)).answer(True)
    for good in (False, False, True, False, False):
        story.advance(5.0).answer(good)
    assert story.causes == []
    assert story.patient.reasons() == ("2 of its last health checks failed: HTTP status 503",)
    story.advance(5.0).answer(False)
    assert story.causes == [Cause.URL_FAILS]
    assert story.status is HealthStatus.UNHEALTHY
    story.advance(5.0).answer(True)
    assert (story.status, story.recoveries) == (HealthStatus.HEALTHY, 1)


def test_failures_of_the_start_period_do_not_count() -> None:
    story = asked(Story(SERVER)).answer(False)
    for _ in range(5):
        story.advance(5.0).answer(False)
    assert (story.causes, story.now) == ([], 1025.0)
    for _ in range(3):
        story.advance(5.0).answer(False)
    assert (story.causes, story.now) == ([Cause.URL_FAILS], 1040.0)


def test_no_answer_in_time_is_a_failure_and_its_late_answer_is_nothing() -> None:
    story = asked(Story(SERVER)).answer(True)
    story.advance(5.0).tell(UrlBegun(2)).advance(2.0)
    assert story.patient.reasons() == ("1 of its last health checks failed: no answer within 2 s",)
    story.tell(UrlAnswered(2, True, "HTTP status 200"))
    assert story.patient.reasons() != ()
    assert story.advance(3.0).questions == [1, 2, 3]


def test_a_late_answer_to_the_life_before_is_nothing() -> None:
    story = asked(Story(SERVER)).tell(UrlBegun(1), Ended(True, "exit code 1"), Started(78), Tick())
    assert story.questions == [1, 2]
    assert story.tell(UrlBegun(2), UrlAnswered(1, True, "HTTP status 200")).status is HealthStatus.STARTING
    assert story.tell(UrlAnswered(2, True, "HTTP status 200")).status is HealthStatus.HEALTHY


def test_a_question_whose_asker_never_comes_back_fails_again_and_again() -> None:
    story = asked(Story(SERVER)).answer(True).advance(5.0).tell(UrlBegun(2)).advance(60.0)
    assert story.causes == [Cause.URL_FAILS]
    assert story.questions == [1, 2]


def test_a_question_that_waits_for_its_turn_is_nobodys_failure() -> None:
    story = asked(Story(SERVER)).answer(True).advance(1000.0)
    assert (story.causes, story.questions) == ([], [1, 2])


def test_a_server_that_answers_is_not_idle() -> None:
    rules = Rules(url=URL, memory_threshold_bytes=100 * MIB, heartbeat_timeout_s=10.0)
    story = asked(Story(rules)).answer(True)
    for _ in range(50):
        story.advance(5.0).answer(True)
    assert story.causes == []


@pytest.mark.parametrize("interval_s", [0.5, 2.0, 7.0])
def test_questions_keep_their_interval_whatever_the_timeout(interval_s: float) -> None:
    story = asked(Story(Rules(idle_fails=False, url=UrlRule(interval_s, 2.0, 10**9))))
    for _ in range(20):
        story.advance(interval_s)
        story.tell(UrlBegun(story.questions[-1]))
        story.advance(2.5).tell(UrlAnswered(story.questions[-1], False, "x"))
    assert story.causes == []


# --- the monitor's own stall ---


def test_a_stall_of_the_monitor_fails_nobody() -> None:
    story = Story(SILENT).tell(Beat())
    story.now += 600.0
    story.tell(Resumed(), Tick())
    assert story.causes == []
    assert story.advance(9.9).causes == []
    assert story.advance(0.1).causes == [Cause.NO_HEARTBEAT]


def test_a_stall_gives_a_starting_worker_its_whole_period_again() -> None:
    story = Story(Rules(ready_expected=True, idle_fails=False)).advance(29.0)
    story.now += 600.0
    story.tell(Resumed(), Tick())
    assert story.advance(29.9).causes == []
    assert story.advance(0.1).causes == [Cause.NOT_READY]


def test_a_stall_interrupts_idleness() -> None:
    story = Story().advance(38.0)
    story.now += 600.0
    story.tell(Resumed(), Tick())
    assert story.advance(10.0).causes == []
    assert story.advance(7.0).causes == [Cause.IDLE]
