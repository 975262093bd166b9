"""The icons: drawn once, shipped twice, told apart by shape."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QApplication

from client.ui.artwork import logo, state_icon
from client.ui.view import Icon

ROOT = Path(__file__).resolve().parents[2]


def drawings() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("draw_icons", ROOT / "assets/draw_icons.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.drawings()


@pytest.mark.parametrize("folder", ["assets/icons", "client/ui/icons"])
def test_the_files_are_as_drawn(folder: str) -> None:
    found = {path.name: path.read_text("utf-8") for path in (ROOT / folder).glob("*.svg")}
    assert found == drawings()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("icon", list(Icon))
def test_every_state_has_an_icon_in_every_tray_size(qapp: QApplication, icon: Icon, dark: bool) -> None:
    for size in (16, 22, 24, 32, 48, 64):
        pixmap = state_icon(icon, dark).pixmap(size, size)
        assert (pixmap.width(), pixmap.height()) == (size, size)


@pytest.mark.parametrize("dark", [False, True])
def test_the_states_differ_in_shape(qapp: QApplication, dark: bool) -> None:
    shapes = {bytes(_outline(state_icon(icon, dark).pixmap(48, 48).toImage())) for icon in Icon}
    assert len(shapes) == len(Icon)


def _outline(image: QImage) -> memoryview:
    """What is there and what is not, whatever its colour."""
    return image.convertToFormat(QImage.Format.Format_Alpha8).constBits()


def test_the_logo_is_there(qapp: QApplication) -> None:
    assert not logo().pixmap(64, 64).isNull()
