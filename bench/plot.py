"""docs/performance.svg: one picture that a merchant can read. Bars, one for each contender; longer is better."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.report import case, ratio
from bench.results import Results

_WIDTH, _LEFT, _RIGHT, _BAR, _STEP, _TOP = 760, 250, 90, 26, 44, 78
_SHOWN = (
    ("service", "This service", "#1f6f5c"),
    ("httpx", "This service, with httpx", "#6fae9d"),
    ("sdk", "FastAPI with the vendor's SDK", "#b0b4ba"),
)


def picture(results: Results) -> str:
    """How many checkouts of 20 and of 100 lines are answered while FastAPI with the SDK answers one."""
    blocks = [(lines, _bars(results, lines)) for lines in (20, 100)]
    blocks = [block for block in blocks if block[1]]
    longest = max(value for _, bars in blocks for _, _, value in bars)
    drawn: list[str] = []
    y = _TOP
    for lines, bars in blocks:
        drawn.append(_text(20, y + 6, f"Checkouts of {lines} lines", weight="600"))
        y += 22
        for name, color, value in bars:
            width = max(2.0, value / longest * (_WIDTH - _LEFT - _RIGHT))
            drawn.append(_text(_LEFT - 12, y + _BAR / 2 + 5, name, anchor="end"))
            drawn.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="3" fill="{color}"/>')
            drawn.append(_text(_LEFT + width + 10, y + _BAR / 2 + 5, _times(value), weight="600"))
            y += _STEP - 8
        y += 26
    title = "Checkouts answered in the same time"
    note = "FastAPI with the vendor's SDK = 1; engine answers at once, 32 shoppers at a time. Longer is better."
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}"'
        f' role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif">'
    )
    ground = f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>'
    words = [_text(20, 32, title, size=19, weight="600"), _text(20, 54, note, size=12, color="#5b6067")]
    return "\n".join([head, ground, *words, *drawn, "</svg>", ""])


def _bars(results: Results, lines: int) -> Sequence[tuple[str, str, float]]:
    found = case(results, lines, 0, 32)
    ratios = ((name, color, ratio(found.get(key), found.get("sdk"), "rps")) for key, name, color in _SHOWN)
    return [(name, color, figures[0]) for name, color, figures in ratios if figures]


def _times(value: float) -> str:
    return f"{value:.1f} x" if value < 9.95 else f"{value:.0f} x"


def _text(
    x: float, y: float, text: str, *, size: int = 14, weight: str = "400", anchor: str = "start", color: str = "#1c1e21"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
        f' fill="{color}">{escape(text)}</text>'
    )


def curves(title: str, note: str, lines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]) -> str:
    """Lines over shares from 0 to 1: (name, colour, points). What lies above the frame is cut off, and ends there."""
    width, height, left, bottom, top = 760, 360, 64, 44, 84
    highest = _round_up(max(value for _, _, points in lines for share, value in points if share <= 0.8))

    def x(share: float) -> float:
        return left + share * (width - left - 30)

    def y(value: float) -> float:
        return height - bottom - min(value, highest) / highest * (height - bottom - top)

    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif">'
    )
    drawn = [
        head,
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(20, 32, title, size=19, weight="600"),
        _text(20, 54, note, size=12, color="#5b6067"),
    ]
    for step in range(5):
        value = highest * step / 4
        drawn.append(
            f'<line x1="{left}" y1="{y(value):.1f}" x2="{x(1):.1f}" y2="{y(value):.1f}" stroke="#e3e5e8"/>'
            + _text(left - 10, y(value) + 5, f"{value:g}", size=12, anchor="end", color="#5b6067")
        )
    drawn += [
        _text(x(share / 5), height - bottom + 22, f"{share / 5:.0%}", size=12, anchor="middle", color="#5b6067")
        for share in range(6)
    ]
    for number, (name, color, points) in enumerate(lines):
        shown = " ".join(f"{x(share):.1f},{y(value):.1f}" for share, value in points if value <= highest)
        drawn.append(f'<polyline points="{shown}" fill="none" stroke="{color}" stroke-width="3"/>')
        drawn.append(
            f'<rect x="{left + 16}" y="{top + 8 + number * 24}" width="14" height="14" rx="3" fill="{color}"/>'
        )
        drawn.append(_text(left + 38, top + 20 + number * 24, name))
    return "\n".join([*drawn, "</svg>", ""])


def _round_up(value: float) -> float:
    """To 1, 2, 4 or 10 times a power of ten: four steps of it are easy to read."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 10) if step * power >= value)
