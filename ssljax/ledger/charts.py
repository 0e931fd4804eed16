"""Charts of the ledger as SVG: results with their intervals and floors, and curves of training.

They are read on a light and on a dark page: each has a ground of its own, which follows the
reader's setting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import html
import math
from typing import Literal

from ssljax.bands import Band

WIDTH = 760  # Pixels, as all lengths here.
LINE = 26  # Of a result.
CHARACTER = 7.0  # Width of one, at most.
STYLE = """
.ground { fill: #ffffff; stroke: #d0d7de }
text { fill: #1f2328; font: 13px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, \
sans-serif }
.title { font-size: 14px; font-weight: 600 }
.small { fill: #59636e; font-size: 12px }
.end { text-anchor: end }
.middle { text-anchor: middle }
.grid { stroke: #d0d7de }
.better { fill: #1a7fc4 }
.worse { fill: #d4731c }
.interval { stroke: #1f2328; stroke-width: 1.5; fill: none }
.floor { stroke: #59636e; stroke-width: 2; stroke-dasharray: 4 3 }
.paper { fill: #ffffff; stroke: #8250df; stroke-width: 2 }
.band { fill: #1a7fc4; fill-opacity: .3 }
.curve { stroke: #1a7fc4; stroke-width: 2; fill: none }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117; stroke: #3d444d }
text { fill: #f0f6fc }
.small { fill: #9198a1 }
.grid { stroke: #3d444d }
.better { fill: #4aa3e0 }
.worse { fill: #e08a3c }
.interval { stroke: #f0f6fc }
.floor { stroke: #9198a1 }
.paper { fill: #0d1117; stroke: #ab7df8 }
.band { fill: #4aa3e0 }
.curve { stroke: #4aa3e0 }
}
"""


@dataclass(frozen=True)
class Bar:
    """A result: mean, half its 95 % interval (0 for one seed), its floor and the paper's number."""

    label: str
    mean: float
    half: float
    floor: float
    shown: str  # The result as text.
    paper: float | None = None


@dataclass(frozen=True)
class Panel:
    """Results on one scale."""

    title: str
    better: Literal["higher", "lower"]
    bars: Sequence[Bar]


def bar_chart(title: str, panels: Sequence[Panel]) -> str:
    """Bars from each result's floor to the result, panel below panel."""
    labels = max(len(bar.label) for panel in panels for bar in panel.bars)
    texts = max(len(bar.shown) for panel in panels for bar in panel.bars)
    left, right = 24 + CHARACTER * labels, WIDTH - 24 - CHARACTER * texts
    parts, y = [_text(16, 26, title, "title")], 44.0
    for panel in panels:
        drawn, y = _panel(panel, left, right, y)
        parts += drawn
    parts += _legend(panels, y + 6)
    about = "; ".join(f"{bar.label} {bar.shown}" for panel in panels for bar in panel.bars)
    return _document(title, about, y + 38, parts)


def _panel(panel: Panel, left: float, right: float, y: float) -> tuple[list[str], float]:
    """Elements of a panel whose top is at y, and where the next begins."""
    low, high, ticks = _scale(panel)
    about = f"{panel.title}, {panel.better} is better"
    if not all(low <= bar.floor <= high for bar in panel.bars):
        about += "; the floor is off the axis"
    parts, y = [_text(16, y + 12, about, "small")], y + 22
    clip = lambda x: min(max(x, low), high)
    place = lambda x: round(left + (right - left) * (clip(x) - low) / (high - low), 1)
    bottom = y + LINE * len(panel.bars)
    for tick in ticks:
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x}" y1="{y}" x2="{x}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, _number(tick, ticks), "small middle"))
    for bar in panel.bars:
        middle = y + LINE / 2
        start, end = sorted((place(bar.floor), place(bar.mean)))
        above = (bar.mean >= bar.floor) == (panel.better == "higher")
        kind = "better" if above else "worse"
        parts.append(_text(16, middle + 4.5, bar.label, ""))
        parts.append(
            f'<rect class="{kind}" x="{start}" y="{middle - 7}" '
            f'width="{round(max(end - start, 1), 1)}" height="14"/>'
        )
        if low <= bar.floor <= high:
            x = place(bar.floor)
            parts.append(f'<line class="floor" x1="{x}" y1="{y}" x2="{x}" y2="{y + LINE}"/>')
        if bar.half > 0:
            a, b = place(bar.mean - bar.half), place(bar.mean + bar.half)
            parts.append(
                f'<path class="interval" d="M{a} {middle}H{b}M{a} {middle - 4}v8'
                f'M{b} {middle - 4}v8"/>'
            )
        if bar.paper is not None:
            x = place(bar.paper)
            parts.append(f'<path class="paper" d="M{x} {middle - 6}l6 6l-6 6l-6 -6z"/>')
        parts.append(_text(WIDTH - 16, middle + 4.5, bar.shown, "end"))
        y += LINE
    return parts, bottom + 30


def _scale(panel: Panel) -> tuple[float, float, list[float]]:
    """Ends of a panel's axis, and its ticks.

    Floors lie outside of it where the results would lie within an eighth of it otherwise.
    """
    ends = [x for bar in panel.bars for x in (bar.mean - bar.half, bar.mean + bar.half)]
    ends += [bar.paper for bar in panel.bars if bar.paper is not None]
    floors = [bar.floor for bar in panel.bars]
    low, high = min(ends + floors), max(ends + floors)
    if len(panel.bars) > 1 and (max(ends) - min(ends)) * 8 < high - low:
        low, high = min(ends), max(ends)
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    low, high = (0.0 if 0 <= low < room else low - room), high + room
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= 6)
    ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return low, high, ticks


def _legend(panels: Sequence[Panel], y: float) -> list[str]:
    """Explanations of the signs that the panels have."""
    bars = [bar for panel in panels for bar in panel.bars]
    parts, x = [], 16.0

    def add(sign: str, width: float, text: str) -> None:
        nonlocal x
        parts.append(sign)
        parts.append(_text(x + width + 6, y + 12, text, "small"))
        x += width + 6 + 5.8 * len(text) + 16

    kinds = {
        (bar.mean >= bar.floor) == (panel.better == "higher")
        for panel in panels
        for bar in panel.bars
    }
    for above, kind, text in ((True, "better", "better than its floor"), (False, "worse", "worse")):
        if above in kinds:
            add(f'<rect class="{kind}" x="{x}" y="{y + 1}" width="14" height="14"/>', 14, text)
    add(f'<path class="floor" d="M{x + 3} {y}v16"/>', 6, "floor, where bars begin")
    if any(bar.half > 0 for bar in bars):
        sign = f'<path class="interval" d="M{x} {y + 8}h16M{x} {y + 4}v8M{x + 16} {y + 4}v8"/>'
        add(sign, 16, "95 % interval")
    if any(bar.paper is not None for bar in bars):
        add(f'<path class="paper" d="M{x + 6} {y + 2}l6 6l-6 6l-6 -6z"/>', 12, "paper")
    return parts


def curve_chart(title: str, bands: Mapping[str, Band]) -> str:
    """Bands over the seeds of metrics of training, one panel each, the mean as a line."""
    parts, y = [_text(16, 26, title, "title")], 44.0
    left, right, height = 76.0, WIDTH - 24.0, 120.0
    for name, band in bands.items():
        parts.append(_text(16, y + 12, name, "small"))
        y += 22
        low, high = min(band.least), max(band.largest)
        room = 0.05 * ((high - low) or 1.0)
        low, high, last = low - room, high + room, band.steps[-1]
        across = lambda step: round(left + (right - left) * step / last, 1)
        down = lambda x: round(y + height * (high - x) / (high - low), 1)
        points = lambda xs, steps: " ".join(
            f"{across(s)},{down(x)}" for s, x in zip(steps, xs, strict=True)
        )
        for x in (low + room, high - room):
            parts.append(
                f'<line class="grid" x1="{left}" y1="{down(x)}" x2="{right}" y2="{down(x)}"/>'
            )
            parts.append(_text(left - 8, down(x) + 4, f"{x:.4g}", "small end"))
        there = points(band.largest, band.steps)
        back = points(band.least[::-1], band.steps[::-1])
        parts.append(f'<polygon class="band" points="{there} {back}"/>')
        parts.append(f'<polyline class="curve" points="{points(band.mean, band.steps)}"/>')
        parts.append(_text(left, y + height + 16, "0", "small middle"))
        parts.append(_text(right, y + height + 16, f"step {last:,}", "small end"))
        y += height + 30
    about = "; ".join(
        f"{name} from {band.mean[0]:.4g} to {band.mean[-1]:.4g}" for name, band in bands.items()
    )
    return _document(title, about, y, parts)


def _document(title: str, about: str, height: float, parts: Sequence[str]) -> str:
    height = math.ceil(height)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>{html.escape(title)}</title>\n<desc>{html.escape(about)}</desc>\n"
        f"<style>{STYLE}</style>\n"
        f'<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, kind: str) -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} x="{round(x, 1)}" y="{round(y, 1)}">{html.escape(text)}</text>'


def _number(x: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(x) or 1.0
    return f"{x:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
