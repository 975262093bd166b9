"""Draws the app's icons as SVG into assets/icons and, for the wheel, into client/ui/icons.

Run `python assets/draw_icons.py` after a change here; tests/ui/test_artwork.py fails until that is done.
States differ in shape (none, dots, tick, bars, triangle), so that they can be told apart without colours.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = (ROOT / "assets/icons", ROOT / "client/ui/icons")

INK = {"light": "#2b3038", "dark": "#f1f3f6"}
PANEL = {"light": "#ffffff", "dark": "#14161a"}
TEAL = {"light": "#0f766e", "dark": "#2dd4bf"}
ON_TEAL = {"light": "#ffffff", "dark": "#06231f"}
GREY = {"light": "#59616e", "dark": "#a0a8b5"}
ALERT = {"light": "#c2410c", "dark": "#fdba74"}
ON_ALERT = {"light": "#ffffff", "dark": "#3b1204"}

STATES = ("idle", "busy", "serving", "paused", "attention")


def stack(ink: str, filled: bool) -> str:
    """Three layers of a model, seen from above. The top one is filled while the device is in use."""
    fill = ink if filled else "none"
    return (
        f'<g fill="none" stroke="{ink}" stroke-width="2.6" stroke-linejoin="round" stroke-linecap="round">'
        f'<path d="M16 3.5 29 10 16 16.5 3 10Z" fill="{fill}"/>'
        '<path d="M3 16 16 22.5 29 16"/><path d="M3 22 16 28.5 29 22"/></g>'
    )


def badge(state: str, theme: str) -> str:
    """The lower right corner, with a rim in the panel's colour so that it stands off the layers."""
    rim = f'stroke="{PANEL[theme]}" stroke-width="2"'
    teal, on_teal, grey = TEAL[theme], ON_TEAL[theme], GREY[theme]
    match state:
        case "busy":
            dots = "".join(f'<circle cx="{x}" cy="23.5" r="1.6" fill="{on_teal}"/>' for x in (18.8, 23.5, 28.2))
            return f'<rect x="14.5" y="17.5" width="18" height="12" rx="6" fill="{teal}" {rim}/>{dots}'
        case "serving":
            tick = f'<path d="M19.4 23.7 22.4 26.7 27.8 20.6" fill="none" stroke="{on_teal}" stroke-width="2.4" '
            return (
                f'<circle cx="23.5" cy="23.5" r="8.5" fill="{teal}" {rim}/>'
                f'{tick}stroke-linecap="round" stroke-linejoin="round"/>'
            )
        case "paused":
            bars = "".join(
                f'<rect x="{x}" y="19.3" width="2.7" height="8.4" rx="1" fill="{PANEL[theme]}"/>' for x in (19.7, 24.6)
            )
            return f'<rect x="15" y="15" width="17" height="17" rx="4.5" fill="{grey}" {rim}/>{bars}'
        case "attention":
            outline = "M22.5 13.6 31.2 29.6Q31.5 30.8 30.3 31H14.7Q13.5 30.8 13.8 29.6Z"
            return (
                f'<path d="{outline}" fill="{ALERT[theme]}" {rim}/>'
                f'<path d="M22.5 19.8V24.6" stroke="{ON_ALERT[theme]}" stroke-width="2.3" stroke-linecap="round"/>'
                f'<circle cx="22.5" cy="28" r="1.3" fill="{ON_ALERT[theme]}"/>'
            )
    return ""


def svg(body: str, size: int) -> str:
    box = f'viewBox="0 0 {size} {size}" width="{size}" height="{size}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{body}</svg>\n'


def tray_icon(state: str, theme: str) -> str:
    ink = INK[theme] if state in ("busy", "serving") else GREY[theme]
    return svg(stack(ink, filled=state in ("busy", "serving")) + badge(state, theme), 34)


def logo() -> str:
    """The app's own icon: two layers of the pool and, bright between them, the volunteer's."""
    return svg(
        '<defs><linearGradient id="a" x1="0" y1="0" x2="1" y2="1">'
        '<stop offset="0" stop-color="#14b8a6"/><stop offset="1" stop-color="#0b4f4a"/></linearGradient></defs>'
        '<rect width="64" height="64" rx="15" fill="url(#a)"/>'
        '<g stroke-linejoin="round" stroke-width="2.5">'
        '<path d="M32 31 52 41 32 51 12 41Z" fill="#0b4f4a" stroke="#7fe3d6"/>'
        '<path d="M32 22 52 32 32 42 12 32Z" fill="#fef3c7" stroke="#fef3c7"/>'
        '<path d="M32 13 52 23 32 33 12 23Z" fill="#0f766e" stroke="#7fe3d6"/></g>',
        64,
    )


def drawings() -> dict[str, str]:
    """File names and contents."""
    files = {f"tray-{state}-{theme}.svg": tray_icon(state, theme) for state in STATES for theme in INK}
    return files | {"logo.svg": logo()}


def main() -> None:
    for folder in TARGETS:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in drawings().items():
            (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
