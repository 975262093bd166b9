"""The style sheet: Fusion's widgets in our colours."""

from __future__ import annotations

from client.ui.colours import Colours


def style_sheet(colours: Colours) -> str:
    parts = (_surfaces, _buttons, _fields, _choices)
    return "".join(part(colours) for part in parts)


def _surfaces(c: Colours) -> str:
    """Cards, plain areas and the kinds of text."""
    return f"""
    QFrame#card {{ background: {c.card}; border: 1px solid {c.border}; border-radius: 14px; }}
    QScrollArea#devices, QWidget#deviceList, QScrollArea#page, QWidget#pageInner {{
        background: transparent; border: none;
    }}
    QLabel#fingerprint {{ font-family: monospace; }}
    QLabel#muted, QLabel#factLabel, QLabel#note {{ color: {c.muted}; }}
    QLabel#alert {{ color: {c.alert}; }}
    """


def _buttons(c: Colours) -> str:
    """The big one, those of dialogs, and those that look like links."""
    return f"""
    QPushButton#primary {{
        background: {c.accent}; color: {c.on_accent}; border: 2px solid {c.accent}; border-radius: 12px;
        min-height: 48px; padding: 0 18px;
    }}
    QPushButton#primary:hover, QPushButton#primary:pressed {{
        background: {c.accent_pressed}; border-color: {c.accent_pressed};
    }}
    QPushButton#primary[quiet="true"] {{ background: {c.card}; color: {c.text}; border-color: {c.border}; }}
    QPushButton#primary[quiet="true"]:hover, QPushButton#primary[quiet="true"]:pressed {{ background: {c.window}; }}
    QPushButton#primary[ring="true"], QPushButton#primary[quiet="true"][ring="true"] {{ border-color: {c.text}; }}
    QPushButton#primary:disabled {{ background: {c.window}; color: {c.muted}; border-color: {c.border}; }}
    QPushButton#primary[menu="true"] {{ padding: 0; }}
    QPushButton#primary::menu-indicator {{ image: none; width: 0; }}
    QPushButton#accept {{
        background: {c.accent}; color: {c.on_accent}; border: 1px solid {c.accent}; border-radius: 8px;
        padding: 7px 16px;
    }}
    QPushButton#accept:hover, QPushButton#accept:pressed {{ background: {c.accent_pressed}; }}
    QPushButton#accept:focus {{ border-color: {c.text}; }}
    QPushButton#accept:disabled {{ background: {c.window}; color: {c.muted}; border-color: {c.border}; }}
    QDialog QPushButton {{
        background: {c.card}; color: {c.text}; border: 1px solid {c.border}; border-radius: 8px; padding: 7px 16px;
    }}
    QDialog QPushButton:hover, QDialog QPushButton:pressed {{ background: {c.window}; }}
    QDialog QPushButton:focus {{ border-color: {c.accent}; }}
    QDialog QPushButton:disabled {{ color: {c.muted}; background: {c.window}; }}
    QPushButton#link {{
        background: transparent; color: {c.accent}; border: 1px solid transparent; border-radius: 6px; padding: 3px 6px;
    }}
    QPushButton#link:hover {{ text-decoration: underline; }}
    QPushButton#link:focus {{ border-color: {c.accent}; }}
    """


def _fields(c: Colours) -> str:
    """What is typed into, lists, bars."""
    return f"""
    QLineEdit {{
        background: {c.window}; color: {c.text}; border: 1px solid {c.border}; border-radius: 8px; padding: 8px 10px;
    }}
    QLineEdit:focus {{ border-color: {c.accent}; }}
    QScrollBar:vertical {{ background: transparent; width: 10px; margin: 2px; }}
    QScrollBar::handle:vertical {{ background: {c.border}; border-radius: 3px; min-height: 32px; }}
    QScrollBar::handle:vertical:hover {{ background: {c.muted}; }}
    QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {{
        background: transparent; border: none; height: 0; width: 0;
    }}
    QHeaderView::section {{
        background: {c.card}; color: {c.muted}; border: none; border-bottom: 1px solid {c.border}; padding: 6px;
    }}
    QProgressBar {{
        background: {c.border}; border: none; border-radius: 4px; min-height: 8px; max-height: 8px;
    }}
    QProgressBar::chunk {{ background: {c.accent}; border-radius: 4px; }}
    """


def _choices(c: Colours) -> str:
    """Radio buttons, check boxes, menus, tabs."""
    return f"""
    QListWidget, QTableWidget {{
        background: {c.card}; color: {c.text}; border: 1px solid {c.border}; border-radius: 8px; padding: 4px;
        alternate-background-color: {c.window};
    }}
    QListWidget:focus, QTableWidget:focus {{ border-color: {c.accent}; }}
    QTabWidget::pane {{ border: none; border-top: 1px solid {c.border}; }}
    QTabBar {{ qproperty-drawBase: 0; }}
    QTabBar::tab {{
        background: transparent; color: {c.muted}; border: none; border-bottom: 2px solid transparent;
        padding: 8px 12px; margin-right: 4px;
    }}
    QTabBar::tab:selected {{ color: {c.text}; border-bottom-color: {c.accent}; }}
    QTabBar::tab:hover, QTabBar::tab:focus {{ color: {c.text}; }}
    QRadioButton, QCheckBox {{ spacing: 8px; padding: 2px; border: 1px solid transparent; border-radius: 6px; }}
    QRadioButton:focus, QCheckBox:focus {{ border-color: {c.accent}; }}
    QRadioButton::indicator, QCheckBox::indicator {{
        width: 14px; height: 14px; border: 1px solid {c.muted}; background: {c.window};
    }}
    QRadioButton::indicator {{ border-radius: 8px; }}
    QCheckBox::indicator {{ border-radius: 4px; }}
    QRadioButton::indicator:checked {{
        border-color: {c.accent};
        background: qradialgradient(cx: 0.5, cy: 0.5, radius: 0.5, fx: 0.5, fy: 0.5,
            stop: 0 {c.accent}, stop: 0.55 {c.accent}, stop: 0.62 {c.window}, stop: 1 {c.window});
    }}
    QCheckBox::indicator:checked {{ border-color: {c.accent}; background: {c.accent}; }}
    QRadioButton::indicator:disabled, QCheckBox::indicator:disabled {{ border-color: {c.border}; }}
    QCheckBox::indicator:checked:disabled {{ background: {c.border}; }}
    QMenu {{ background: {c.card}; color: {c.text}; border: 1px solid {c.border}; padding: 6px; }}
    QMenu::item {{ padding: 7px 28px 7px 14px; border-radius: 6px; }}
    QMenu::item:selected {{ background: {c.accent}; color: {c.on_accent}; }}
    QMenu::item:disabled {{ color: {c.muted}; background: transparent; }}
    QMenu::separator {{ height: 1px; background: {c.border}; margin: 6px 8px; }}
    """
