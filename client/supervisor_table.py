"""The supervisor's states, and what each of them makes of what happens. A missing entry is a defect of the shell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from client.status import SOFT_LEAVE_S

START_LIMIT_S = 60.0
"""How long the agent may stay silent after a start: a cold disk reads Python and its packages in 10 s or more. Any
report ends this wait, so that preparing the runtime may take as long as it takes."""
PAUSE_LIMIT_S = 10.0
"""A volunteer who pauses wants the GPU back; an agent that has not let go by then is ended."""
FINISH_LIMIT_S = SOFT_LEAVE_S + PAUSE_LIMIT_S
"""The answers' time, and then that of any pause."""
QUIT_LIMIT_S = 10.0


class Phase(Enum):
    """What the volunteer wished for and how far the agent has followed."""

    STOPPED = auto()
    """No process."""
    STARTING = auto()
    """Started or resumed, no answer so far."""
    CONTRIBUTING = auto()
    """As the volunteer wishes; the agent's own reasons to pause (its status says which) do not change that."""
    FAILED = auto()
    """The process lives and says that it cannot go on without the volunteer."""
    FINISHING = auto()
    """The volunteer paused, but the answers that run may end or go elsewhere first; nothing new is taken."""
    PAUSING = auto()
    PAUSED = auto()
    """The volunteer paused. The process lives, its workers do not: the GPU's memory is free."""
    ENDING = auto()
    """The process is on its way out, and nothing follows."""
    REPLACING = auto()
    """The process is on its way out, and a new one follows."""
    RESTARTING = auto()
    """The process ended by itself; a new one follows after the back-off."""
    LEAVING = auto()
    """The app quits as soon as the process has ended."""
    ENDED = auto()


class Input(Enum):
    """What an event means to the machine."""

    CONTRIBUTE = auto()
    CONTRIBUTE_ANYWAY = auto()
    PAUSE = auto()
    PAUSE_AFTER_ANSWERS = auto()
    QUIT = auto()
    CHANGE_POOL = auto()
    REPORTED = auto()
    REPORTED_PAUSED = auto()
    REPORTED_FAILED = auto()
    PAUSE_OVER = auto()
    """The agent is at work again because the pause that the volunteer gave an end to is over."""
    EXITED = auto()
    DEADLINE = auto()


class Order(Enum):
    """What a transition wants done; the supervisor fills in the words."""

    START = auto()
    PAUSE = auto()
    PAUSE_AFTER_ANSWERS = auto()
    RESUME = auto()
    RESUME_ANYWAY = auto()
    QUIT = auto()
    KILL = auto()
    EXIT = auto()


@dataclass(frozen=True, slots=True)
class Do:
    """The orders, and how long the new phase may last. With `keeps_limit` a running deadline goes on."""

    orders: tuple[Order, ...] = ()
    limit_s: float | None = None
    keeps_limit: bool = False


_NOTHING = Do()
_START = Do((Order.START,), START_LIMIT_S)
_RESUME = Do((Order.RESUME,), START_LIMIT_S)
_RESUME_ANYWAY = Do((Order.RESUME_ANYWAY,), START_LIMIT_S)
# Pause first: an agent that has failed ends what is left of its attempt before it begins a new one.
_TRY_AGAIN = Do((Order.PAUSE, Order.RESUME), START_LIMIT_S)
_PAUSE = Do((Order.PAUSE,), PAUSE_LIMIT_S)
_FINISH = Do((Order.PAUSE_AFTER_ANSWERS,), FINISH_LIMIT_S)
_FINISH_OTHERWISE = Do((Order.PAUSE_AFTER_ANSWERS,), keeps_limit=True)
_PAUSE_OTHERWISE = Do((Order.PAUSE,), keeps_limit=True)
_AWAIT_PAUSE = Do((), PAUSE_LIMIT_S)
_QUIT = Do((Order.QUIT,), QUIT_LIMIT_S)
_KILL = Do((Order.KILL,))
_EXIT = Do((Order.EXIT,))

_P, _I = Phase, Input
Entry = tuple[Phase, Do] | None
"""None: stay, and leave a running deadline alone."""

TRANSITIONS: dict[Phase, dict[Input, Entry]] = {
    _P.STOPPED: {
        _I.CONTRIBUTE: (_P.STARTING, _START),
        _I.CONTRIBUTE_ANYWAY: (_P.STARTING, _START),
        _I.PAUSE: None,
        _I.PAUSE_AFTER_ANSWERS: None,
        _I.QUIT: (_P.ENDED, _EXIT),
        _I.CHANGE_POOL: None,
    },
    _P.STARTING: {
        _I.CONTRIBUTE: None,
        _I.CONTRIBUTE_ANYWAY: None,
        _I.PAUSE: (_P.PAUSING, _PAUSE),
        # It may have been resumed a moment ago, with answers that never left.
        _I.PAUSE_AFTER_ANSWERS: (_P.FINISHING, _FINISH),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.REPLACING, _QUIT),
        _I.REPORTED: (_P.CONTRIBUTING, _NOTHING),
        _I.REPORTED_PAUSED: (_P.CONTRIBUTING, _NOTHING),
        _I.REPORTED_FAILED: (_P.FAILED, _NOTHING),
        _I.EXITED: (_P.RESTARTING, _NOTHING),
        _I.DEADLINE: (_P.REPLACING, _KILL),
    },
    _P.CONTRIBUTING: {
        _I.CONTRIBUTE: None,
        # Nothing is awaited: what the agent says next is the truth, whatever it is.
        _I.CONTRIBUTE_ANYWAY: (_P.CONTRIBUTING, Do((Order.RESUME_ANYWAY,))),
        _I.PAUSE: (_P.PAUSING, _PAUSE),
        _I.PAUSE_AFTER_ANSWERS: (_P.FINISHING, _FINISH),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.REPLACING, _QUIT),
        _I.REPORTED: None,
        # The answer to a Pause that a Resume has overtaken, or the agent's own reason to pause.
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: (_P.FAILED, _NOTHING),
        _I.EXITED: (_P.RESTARTING, _NOTHING),
    },
    _P.FAILED: {
        _I.CONTRIBUTE: (_P.STARTING, _TRY_AGAIN),
        _I.CONTRIBUTE_ANYWAY: (_P.STARTING, _TRY_AGAIN),
        _I.PAUSE: (_P.PAUSING, _PAUSE),
        # It has no answers.
        _I.PAUSE_AFTER_ANSWERS: (_P.PAUSING, _PAUSE),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.REPLACING, _QUIT),
        _I.REPORTED: (_P.CONTRIBUTING, _NOTHING),
        _I.REPORTED_PAUSED: (_P.PAUSED, _NOTHING),
        _I.REPORTED_FAILED: None,
        # It said why it cannot go on: a restart would fail in the same way.
        _I.EXITED: (_P.STOPPED, _NOTHING),
    },
    _P.FINISHING: {
        _I.CONTRIBUTE: (_P.STARTING, _RESUME),
        _I.CONTRIBUTE_ANYWAY: (_P.STARTING, _RESUME_ANYWAY),
        _I.PAUSE: (_P.PAUSING, _PAUSE),
        # Another end for the same pause: the answers get no more time than they had.
        _I.PAUSE_AFTER_ANSWERS: (_P.FINISHING, _FINISH_OTHERWISE),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.ENDING, _QUIT),
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: (_P.PAUSED, _NOTHING),
        _I.REPORTED_FAILED: (_P.PAUSED, _NOTHING),
        # However it ended, the GPU is free and the volunteer wanted a pause.
        _I.EXITED: (_P.STOPPED, _NOTHING),
        _I.DEADLINE: (_P.ENDING, _KILL),
    },
    _P.PAUSING: {
        _I.CONTRIBUTE: (_P.STARTING, _RESUME),
        _I.CONTRIBUTE_ANYWAY: (_P.STARTING, _RESUME_ANYWAY),
        # Another end for the same pause; the GPU must be free by the first click's limit all the same.
        _I.PAUSE: (_P.PAUSING, _PAUSE_OTHERWISE),
        # Who wanted the GPU at once is not made to wait for answers.
        _I.PAUSE_AFTER_ANSWERS: (_P.PAUSING, _PAUSE_OTHERWISE),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.ENDING, _QUIT),
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: (_P.PAUSED, _NOTHING),
        # It failed before it heard of the pause: it serves nothing either way.
        _I.REPORTED_FAILED: (_P.PAUSED, _NOTHING),
        _I.EXITED: (_P.STOPPED, _NOTHING),
        _I.DEADLINE: (_P.ENDING, _KILL),
    },
    _P.PAUSED: {
        _I.CONTRIBUTE: (_P.STARTING, _RESUME),
        _I.CONTRIBUTE_ANYWAY: (_P.STARTING, _RESUME_ANYWAY),
        _I.PAUSE: (_P.PAUSED, Do((Order.PAUSE,))),
        _I.PAUSE_AFTER_ANSWERS: (_P.PAUSED, Do((Order.PAUSE,))),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.ENDING, _QUIT),
        # The answer to a Resume that a Pause has overtaken: the last answer is still to come.
        _I.REPORTED: (_P.PAUSING, _AWAIT_PAUSE),
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: None,
        _I.PAUSE_OVER: (_P.CONTRIBUTING, _NOTHING),
        _I.EXITED: (_P.STOPPED, _NOTHING),
    },
    _P.ENDING: {
        _I.CONTRIBUTE: (_P.REPLACING, _KILL),
        _I.CONTRIBUTE_ANYWAY: (_P.REPLACING, _KILL),
        _I.PAUSE: None,
        _I.PAUSE_AFTER_ANSWERS: None,
        _I.QUIT: (_P.LEAVING, _KILL),
        _I.CHANGE_POOL: None,
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: None,
        _I.EXITED: (_P.STOPPED, _NOTHING),
        _I.DEADLINE: (_P.ENDING, _KILL),
    },
    _P.REPLACING: {
        _I.CONTRIBUTE: None,
        _I.CONTRIBUTE_ANYWAY: None,
        _I.PAUSE: (_P.ENDING, _KILL),
        # It hands over what runs as it quits.
        _I.PAUSE_AFTER_ANSWERS: (_P.ENDING, Do((), keeps_limit=True)),
        _I.QUIT: (_P.LEAVING, _KILL),
        _I.CHANGE_POOL: None,
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: None,
        _I.EXITED: (_P.STARTING, _START),
        _I.DEADLINE: (_P.REPLACING, _KILL),
    },
    _P.RESTARTING: {
        _I.CONTRIBUTE: None,
        _I.CONTRIBUTE_ANYWAY: None,
        _I.PAUSE: (_P.STOPPED, _NOTHING),
        _I.PAUSE_AFTER_ANSWERS: (_P.STOPPED, _NOTHING),
        _I.QUIT: (_P.ENDED, _EXIT),
        _I.CHANGE_POOL: (_P.STARTING, _START),
        _I.DEADLINE: (_P.STARTING, _START),
    },
    _P.LEAVING: {
        _I.CONTRIBUTE: None,
        _I.CONTRIBUTE_ANYWAY: None,
        _I.PAUSE: None,
        _I.PAUSE_AFTER_ANSWERS: None,
        _I.QUIT: None,
        _I.CHANGE_POOL: None,
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: None,
        _I.EXITED: (_P.ENDED, _EXIT),
        _I.DEADLINE: (_P.LEAVING, _KILL),
    },
    _P.ENDED: {
        _I.CONTRIBUTE: None,
        _I.CONTRIBUTE_ANYWAY: None,
        _I.PAUSE: None,
        _I.PAUSE_AFTER_ANSWERS: None,
        _I.QUIT: None,
        _I.CHANGE_POOL: None,
    },
}

LISTENING = frozenset({_P.STARTING, _P.CONTRIBUTING, _P.FAILED, _P.FINISHING, _P.PAUSING, _P.PAUSED})
"""The process hears what it is told: rules and readings go to it."""
