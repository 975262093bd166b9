"""What will happen, before the volunteer says yes."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QGridLayout, QWidget

from client.ui.labels import PlainLabel
from client.ui.plan import Plan, PlanRow


class PlanCard(QFrame):
    """Rows of a label and a sentence, and under them what the volunteer should know before."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("card")
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(16, 14, 16, 14)
        self._grid.setHorizontalSpacing(14)
        self._grid.setVerticalSpacing(10)
        self._grid.setColumnStretch(1, 1)
        self._rows: list[tuple[PlainLabel, PlainLabel]] = []
        self._problem = PlainLabel(self, "alert")
        self._problem.hide()

    def show_plan(self, plan: Plan) -> None:
        while len(self._rows) < len(plan.rows):
            self._rows.append(self._add_row(len(self._rows)))
        unused = [PlanRow("", "")] * (len(self._rows) - len(plan.rows))  # empty labels take no room
        for (label, text), row in zip(self._rows, [*plan.rows, *unused], strict=True):
            label.show_text(row.label)
            text.show_text(row.text)
            text.setAccessibleName(f"{row.label}: {row.text}")
        self._problem.show_text(plan.problem)
        self._grid.addWidget(self._problem, len(self._rows), 0, 1, 2)
        told = [f"{row.label}: {row.text}" for row in plan.rows]
        self.setAccessibleName("What will happen")
        self.setAccessibleDescription(" ".join([*told, plan.problem]).strip())

    def _add_row(self, index: int) -> tuple[PlainLabel, PlainLabel]:
        label, text = PlainLabel(self, "muted"), PlainLabel(self)
        label.setWordWrap(False)
        self._grid.addWidget(label, index, 0, Qt.AlignmentFlag.AlignTop)
        self._grid.addWidget(text, index, 1, Qt.AlignmentFlag.AlignTop)
        return label, text
