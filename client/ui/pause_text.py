"""Why it does not serve, in plain sentences. Free of Qt."""

from __future__ import annotations

from client.status import SOFT_LEAVE_S, PauseInfo, Status
from client.ui.pause_choice import ManualPause
from client.ui.text import MAX_SENTENCE_CHARACTERS, clean, format_duration, format_moment, format_point
from protocol.pause import PauseReason

SENTENCES = {
    PauseReason.MANUAL: "You paused it.",
    PauseReason.OTHER_GPU_USE: "Another program is using the GPU.",
    PauseReason.VIDEO: "A video is being played or recorded.",
    PauseReason.LOW_GPU_MEMORY: "Another program needs the GPU's memory.",
    PauseReason.FULLSCREEN: "A program fills the screen.",
    PauseReason.PROGRAM: "A program that you chose is running.",
    PauseReason.BATTERY: "The computer runs on battery.",
    PauseReason.USER_ACTIVE: "You are using the computer.",
    PauseReason.HOT: "The GPU is too hot.",
    PauseReason.HOURS: "It is outside the hours that you chose.",
}
_GOES_ON = {
    PauseReason.OTHER_GPU_USE: "It goes on by itself soon after the GPU is free again.",
    PauseReason.VIDEO: "It goes on by itself soon after the video ends.",
    PauseReason.LOW_GPU_MEMORY: "It goes on by itself once there is enough free memory again.",
    PauseReason.FULLSCREEN: "It goes on by itself soon after that program is closed or leaves the full screen.",
    PauseReason.PROGRAM: "It goes on by itself soon after that program is closed.",
    PauseReason.BATTERY: "It goes on by itself once the computer is plugged in.",
    PauseReason.USER_ACTIVE: "It goes on by itself when you have been away for a while.",
    PauseReason.HOT: "It goes on by itself once the GPU has cooled down.",
    PauseReason.HOURS: "It goes on by itself when they begin.",
}
LEAVING = "Leaving the pool and freeing your devices' memory."
_MEMORY_IS_FREE = "Your devices' memory is free. The pool goes on without you."


def reason_of(pause: PauseInfo | None) -> str:
    """The first reason is the one to tell: the agent puts them in order."""
    return SENTENCES[pause.reasons[0]] if pause is not None and pause.reasons else ""


def detail_of(pause: PauseInfo | None) -> str:
    return clean(pause.detail, MAX_SENTENCE_CHARACTERS) if pause is not None else ""


def automatic_pause_sentence(pause: PauseInfo | None, now_s: float) -> str:
    """When it goes on: counted down once nothing stirs, else what it waits for."""
    if pause is None or not pause.reasons:
        return _MEMORY_IS_FREE
    if pause.resumes_at_s is None:
        return _GOES_ON.get(pause.reasons[0], _MEMORY_IS_FREE)
    wait_s = pause.resumes_at_s - now_s
    if wait_s > _LONG_WAIT_S:
        return f"It goes on by itself {format_point(pause.resumes_at_s, now_s)}."
    return f"It goes on by itself in {format_duration(wait_s)}, if nothing stirs again."


def is_counting_down(pause: PauseInfo | None, now_s: float) -> bool:
    """The sentence changes by the second."""
    return pause is not None and pause.resumes_at_s is not None and pause.resumes_at_s - now_s <= _LONG_WAIT_S


def finishing_sentence(status: Status, now_s: float) -> str:
    """What a pause waits for, and for how long at most; a clock that was set meanwhile does not make it longer."""
    if status.num_sessions <= 0:
        return LEAVING
    answers = "1 answer" if status.num_sessions == 1 else f"{status.num_sessions:,} answers"
    if status.leaves_at_s is None:
        return f"Finishing {answers}."
    wait_s = min(SOFT_LEAVE_S, status.leaves_at_s - now_s)
    return f"Finishing {answers}, at most {format_duration(wait_s)} more."


def manual_pause_sentence(until_s: float | None, pause: ManualPause | None, now_s: float) -> str:
    if until_s is not None:
        return f"{_MEMORY_IS_FREE} It goes on by itself {format_point(until_s, now_s)}."
    if pause is not None and not pause.outlives_app:
        return f"{_MEMORY_IS_FREE} It goes on when you resume, or when the app starts again."
    return f"{_MEMORY_IS_FREE} It goes on when you say so."


def manual_pause_headline(until_s: float | None, now_s: float) -> str:
    return "Paused" if until_s is None else f"Paused until {format_moment(until_s, now_s)}"


_LONG_WAIT_S = 15 * 60.0
"""Longer waits have an end that people think of as a time of day: hours, a schedule."""
