"""The page of the settings that says when the GPU is given back. Counts at once."""

from __future__ import annotations

import msgspec
from PySide6.QtCore import QTime, Signal
from PySide6.QtWidgets import QButtonGroup, QRadioButton, QTimeEdit, QWidget

from client.desktop.session import SourceNames
from client.ui.settings_programs import ProgramList
from client.ui.settings_rows import Card, Number, Page, TickBox, silent
from protocol.pause import DEFAULT_RULES, Hours, PauseMode, PauseRules

_MODES = {
    PauseMode.WHEN_FREE: (
        "When nothing else needs the GPU",
        "It gives way to games, films and other programs that use the GPU, and goes on afterwards.",
    ),
    PauseMode.WHEN_AWAY: (
        "Only when I am away",
        "It also gives way to anyone who touches the mouse or the keyboard.",
    ),
    PauseMode.ALWAYS: (
        "Always",
        "Whatever else the computer does. Other programs may become slower.",
    ),
}
_INDENT = 26
_NIGHT = Hours(22 * 60, 8 * 60)


class RulesPage(Page):
    """Emits `changed` with all rules; what the volunteer never touched stays undecided, so that a pool may decide."""

    changed = Signal(PauseRules)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("When to contribute", parent)
        self._rules = PauseRules()
        self._modes: dict[PauseMode, QRadioButton] = {}
        self._away = Number("Minutes until you count as away", 1, 24 * 60, " min")
        self._others = Number("Other programs' share of the GPU in percent", 1, 100, " %")
        self._temperature = Number("Highest temperature of the GPU in degrees Celsius", 40, 110, " °C")
        self._battery = TickBox("Contribute on battery, too")
        self._has_hours = TickBox("Only at certain hours")
        self._start, self._stop = _clock("Contribute from"), _clock("Contribute until")
        self.programs = ProgramList()
        self._add_modes(self.add_card("Contribute"))
        self._add_signs(self.add_card("Give the GPU back"))
        self._add_programs(self.add_card("Programs that come first"))
        self._add_hours(self.add_card("Hours"))
        self._connect()
        self.show_rules(self._rules)

    def _add_modes(self, card: Card) -> None:
        group = QButtonGroup(self)
        for mode, (text, sentence) in _MODES.items():
            button = QRadioButton(text)
            button.setAccessibleDescription(sentence)
            button.toggled.connect(lambda checked, mode=mode: self._change(mode=mode) if checked else None)
            group.addButton(button)
            self._modes[mode] = button
            card.add(button)
            card.explain(sentence, indent=_INDENT)
            if mode is PauseMode.WHEN_AWAY:
                card.line("Away means: no key or mouse for", self._away, indent=_INDENT)
                self._idle_source = card.explain("", indent=_INDENT)

    def _add_signs(self, card: Card) -> None:
        card.line("When other programs use more of the GPU than", self._others)
        card.line("When the GPU is hotter than", self._temperature)
        self._fullscreen_source = card.explain("")
        card.add(self._battery)

    def _add_programs(self, card: Card) -> None:
        card.explain("While one of these runs, this computer does not contribute.")
        card.add(self.programs)

    def _add_hours(self, card: Card) -> None:
        card.add(self._has_hours)
        card.line("From", self._start, "until", self._stop, indent=_INDENT)

    def _connect(self) -> None:
        self._away.valueChanged.connect(lambda minutes: self._change(away_after_s=60.0 * minutes))
        self._others.valueChanged.connect(lambda percent: self._change(other_gpu_percent=percent))
        self._temperature.valueChanged.connect(lambda degrees: self._change(max_temperature_c=degrees))
        self._battery.toggled.connect(lambda checked: self._change(run_on_battery=checked))
        self.programs.changed.connect(lambda names: self._change(programs=names))
        self._has_hours.toggled.connect(lambda _checked: self._change_hours())
        for clock in (self._start, self._stop):
            clock.timeChanged.connect(lambda _time: self._change_hours())

    def show_rules(self, rules: PauseRules) -> None:
        self._rules = rules
        shown = _decided(rules)
        boxes = (*self._modes.values(), self._away, self._others, self._temperature, self._battery)
        with silent(*boxes, self._has_hours, self._start, self._stop):
            self._modes[shown.mode or PauseMode.WHEN_FREE].setChecked(True)
            self._away.setValue(max(1, round((shown.away_after_s or 0) / 60)))
            self._others.setValue(shown.other_gpu_percent or 1)
            self._temperature.setValue(shown.max_temperature_c or 0)
            self._battery.setChecked(bool(shown.run_on_battery))
            self._has_hours.setChecked(shown.hours is not None)
            hours = shown.hours or _hours_of(self._start, self._stop) or _NIGHT
            self._start.setTime(_time(hours.start_minute))
            self._stop.setTime(_time(hours.stop_minute))
        self.programs.show_names(rules.programs)
        self._show_enabled()

    def show_sources(self, names: SourceNames) -> None:
        """Which of the desktop's readings work: nothing is claimed that is not seen."""
        self._idle_source.show_text(
            f"Whether you are there is seen through {names.idle}."
            if names.idle
            else "This desktop does not tell whether you are there: with this choice it would never contribute."
        )
        self._fullscreen_source.show_text(
            f"When a game or a film fills the screen (seen through {names.fullscreen})"
            if names.fullscreen
            else "This desktop does not tell when a program fills the screen; games show by their use of the GPU."
        )

    def _change(self, **fields: object) -> None:
        self._rules = msgspec.structs.replace(self._rules, **fields)
        self._show_enabled()
        self.changed.emit(self._rules)

    def _change_hours(self) -> None:
        self._change(hours=_hours_of(self._start, self._stop) if self._has_hours.isChecked() else None)

    def _show_enabled(self) -> None:
        mode = self._rules.mode or DEFAULT_RULES.mode
        self._away.setEnabled(mode is PauseMode.WHEN_AWAY)
        self._others.setEnabled(mode is not PauseMode.ALWAYS)
        for clock in (self._start, self._stop):
            clock.setEnabled(self._has_hours.isChecked())


def _decided(rules: PauseRules) -> PauseRules:
    fields = PauseRules.__struct_fields__
    given = {name: value for name in fields if (value := getattr(rules, name)) is not None}
    return msgspec.structs.replace(DEFAULT_RULES, **given)


def _clock(name: str) -> QTimeEdit:
    clock = QTimeEdit()
    clock.setDisplayFormat("HH:mm")
    clock.setKeyboardTracking(False)
    clock.setAccessibleName(name)
    return clock


def _time(minute: int) -> QTime:
    return QTime(minute // 60, minute % 60)


def _hours_of(start: QTimeEdit, stop: QTimeEdit) -> Hours | None:
    """None: both are the same, which would be no hour or all of them."""
    first, last = (60 * clock.time().hour() + clock.time().minute() for clock in (start, stop))
    return None if first == last else Hours(first, last)
