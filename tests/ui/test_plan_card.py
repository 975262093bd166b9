"""The card of what will happen, as the facts come in."""

from __future__ import annotations

from pytestqt.qtbot import QtBot

from client.ui.labels import PlainLabel
from client.ui.plan import Plan, PlanRow
from client.ui.plan_card import PlanCard

LOOKING = Plan((PlanRow("Uses", "Looking..."), PlanRow("Downloads", "a few GB"), PlanRow("Then", "layers")))
KNOWN = Plan((PlanRow("Uses", "A card"), PlanRow("Downloads", "layers")), "The disk is nearly full.")


def shown(card: PlanCard) -> list[str]:
    return [label.text() for label in card.findChildren(PlainLabel) if not label.isHidden()]


def test_a_plan_with_fewer_rows_than_the_one_before_leaves_none_of_them(qtbot: QtBot) -> None:
    card = PlanCard()
    qtbot.addWidget(card)
    card.show_plan(LOOKING)
    assert "Then" in shown(card)
    card.show_plan(KNOWN)
    assert sorted(shown(card)) == sorted(["Uses", "A card", "Downloads", "layers", "The disk is nearly full."])
    assert "Then" not in card.accessibleDescription()
    card.show_plan(LOOKING)
    assert "Then" in shown(card)
