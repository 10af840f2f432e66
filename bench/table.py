"""Two shapes of measured rows, of seconds and of memory: pylayers, a peer, the limit, ratios and goals; as Markdown and
as a picture."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

HEAD = "| work | pylayers s | peer | peer s | peer / pylayers | goal | limit s | pylayers / limit | goal |"
RULE = "| --- | ---: | --- | ---: | ---: | --- | ---: | ---: | --- |"
COLOURS = {"pylayers": "#1b6ca8", "peer": "#c9a227", "limit": "#8a8a8a"}
BAR_PX, GAP_PX, LABEL_PX, WIDTH_PX, MARGIN_PX = 11, 9, 330, 620, 30


class Row:
    """Hold one row's medians in seconds; goals are ratios: at least for the peer, at most for the limit."""

    def __init__(
        self,
        work: str,
        pylayers_s: float,
        peer: str | None,
        peer_s: float | None,
        goal: float | None,
        limit_s: float | None,
        limit_goal: float | None,
        samples: dict[str, list[float]] | None = None,
    ) -> None:
        self.work = work
        self.pylayers_s = pylayers_s
        self.peer = peer
        self.peer_s = peer_s
        self.goal = goal
        self.limit_s = limit_s
        self.limit_goal = limit_goal
        self.samples = samples or {}

    def describe(self) -> dict[str, Any]:
        """Return the row for JSON."""
        ratio = None if self.peer_s is None else self.peer_s / self.pylayers_s
        limit_ratio = None if self.limit_s is None else self.pylayers_s / self.limit_s
        return {
            "work": self.work,
            "pylayers_s": self.pylayers_s,
            "peer": self.peer,
            "peer_s": self.peer_s,
            "ratio": ratio,
            "goal": self.goal,
            "reached": None if ratio is None or self.goal is None else ratio >= self.goal,
            "limit_s": self.limit_s,
            "limit_ratio": limit_ratio,
            "limit_goal": self.limit_goal,
            "limit_reached": None
            if limit_ratio is None or self.limit_goal is None
            else limit_ratio <= self.limit_goal,
            "samples_s": self.samples,
        }


class MemoryRow:
    """Hold the most memory of its own (RssAnon) that a work's process was seen with, and what it has to stay below."""

    def __init__(self, work: str, peak_bytes: int, bound_bytes: int) -> None:
        self.work = f"peak RssAnon: {work}"
        self.peak_bytes = peak_bytes
        self.bound_bytes = bound_bytes

    def describe(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {
            "work": self.work,
            "unit": "MB",
            "pylayers_mb": self.peak_bytes / 1e6,
            "limit_mb": self.bound_bytes / 1e6,
            "limit_ratio": self.peak_bytes / self.bound_bytes,
            "limit_reached": self.peak_bytes < self.bound_bytes,
        }


def render_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Write the Markdown table."""
    lines = [HEAD, RULE]
    for row in rows:
        if is_memory(row):
            lines.append(
                f"| {row['work']} | {row['pylayers_mb']:.0f} MB |  |  |  |  | {row['limit_mb']:.0f} MB |"
                f" {row['limit_ratio']:.2f} | < 1 {'✓' if row['limit_reached'] else '✗'} |"
            )
            continue
        lines.append(
            f"| {row['work']} | {show(row['pylayers_s'], '.4g')} | {row['peer'] or ''} | {show(row['peer_s'], '.4g')} |"
            f" {show(row['ratio'], '.1f')} | {goal('≥', row['goal'], row['reached'])} | {show(row['limit_s'], '.4g')} |"
            f" {show(row['limit_ratio'], '.2f')} | {goal('≤', row['limit_goal'], row['limit_reached'])} |"
        )
    return "\n".join(lines)


def is_memory(row: dict[str, Any]) -> bool:
    """Tell whether a row holds memory, not seconds."""
    return bool(row.get("unit") == "MB")


def show(value: float | None, form: str) -> str:
    """Format a number, or nothing for none."""
    return "" if value is None else format(value, form)


def goal(sign: str, value: float | None, reached: bool | None) -> str:
    """Write a goal with its mark."""
    if value is None:
        return ""
    mark = "" if reached is None else " ✓" if reached else " ✗"
    return f"{sign} {value:g}{mark}"


def draw(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Draw the bars of every work as SVG: seconds on one logarithmic scale, memory below on a linear one."""
    timed = [row for row in rows if not is_memory(row)]
    sized = [row for row in rows if is_memory(row)]
    if not timed and not sized:
        raise ValueError("there is nothing to draw")
    parts: list[str] = []
    y = 2 * MARGIN_PX
    if timed:
        y = draw_times(timed, parts, y)
    if sized:
        y = draw_memory(sized, parts, y + 2 * MARGIN_PX if timed else y)
    width = LABEL_PX + WIDTH_PX + 220
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + MARGIN_PX}" font-family="sans-serif"'
        f' font-size="11"><style>.value {{ font-size: 9px; fill: #444 }}</style>'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{MARGIN_PX}" y="{MARGIN_PX - 8}" font-size="14">{html.escape(title)}</text>'
        + "".join(parts) + "</svg>\n"
    )  # fmt: skip


def draw_times(rows: Sequence[dict[str, Any]], parts: list[str], top: int) -> int:
    """Draw the rows of seconds from a height on; return the height they end at."""
    times = [row[key] for row in rows for key in ("pylayers_s", "peer_s", "limit_s") if row[key]]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    high = max(high, low + 1)

    def at(seconds: float) -> float:
        return LABEL_PX + (math.log10(seconds) - low) / (high - low) * WIDTH_PX

    bars: list[str] = []
    y = top
    for row in rows:
        shown = [("pylayers", "pylayers", row["pylayers_s"]), ("peer", row["peer"], row["peer_s"]),
                 ("limit", "limit", row["limit_s"])]  # fmt: skip
        y = draw_bars(row["work"], [(kind, f"{name} {value:.3g} s", at(value)) for kind, name, value in shown if value],
                      bars, y)  # fmt: skip
    ticks = [(at(10.0**power), f"{10.0**power:g} s") for power in range(low, high + 1)]
    parts += [*draw_ticks(ticks, top, y), *bars]
    return y


def draw_memory(rows: Sequence[dict[str, Any]], parts: list[str], top: int) -> int:
    """Draw the rows of memory from a height on; return the height they end at."""
    highest = max(max(row["pylayers_mb"], row["limit_mb"]) for row in rows)

    def at(megabytes: float) -> float:
        return LABEL_PX + float(megabytes / highest) * WIDTH_PX

    bars: list[str] = []
    y = top
    for row in rows:
        shown = [("pylayers", f"pylayers {row['pylayers_mb']:.0f} MB", at(row["pylayers_mb"]))]
        y = draw_bars(row["work"], shown, bars, y)
    bound = rows[0]["limit_mb"]
    parts += [*draw_ticks([(at(0), "0"), (at(bound), f"bound: {bound:.0f} MB")], top, y), *bars]
    return y


def draw_bars(work: str, bars: Sequence[tuple[str, str, float]], parts: list[str], y: int) -> int:
    """Draw one work's bars of (kind, text, end); return the height of the next work's."""
    middle = y + BAR_PX * len(bars) / 2 + 4
    parts.append(f'<text x="{LABEL_PX - 8}" y="{middle:.0f}" text-anchor="end">{html.escape(work)}</text>')
    for kind, text, place in bars:
        end = max(place, LABEL_PX + 1)
        parts.append(
            f'<rect x="{LABEL_PX}" y="{y}" width="{end - LABEL_PX:.1f}" height="{BAR_PX - 2}" fill="{COLOURS[kind]}"/>'
            f'<text x="{end + 4:.1f}" y="{y + BAR_PX - 3}" class="value">{html.escape(text)}</text>'
        )
        y += BAR_PX
    return y + GAP_PX


def draw_ticks(ticks: Sequence[tuple[float, str]], top: int, bottom: int) -> list[str]:
    """Draw a scale's lines of (place, text)."""
    return [
        f'<line x1="{x:.1f}" y1="{top - 8}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>'
        f'<text x="{x:.1f}" y="{top - 12}" text-anchor="middle">{html.escape(text)}</text>'
        for x, text in ticks
    ]
