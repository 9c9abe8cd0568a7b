"""Draws the pictures of docs/performance.md from the newest results: what a step pays, and what requests wait for."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
COLOURS = {"sonde": "#0b7285", "peer": "#adb5bd", "off": "#495057", "more": "#e8590c"}
STYLE = 'font-family="sans-serif" font-size="12" fill="#212529"'


class Picture:
    """An SVG file in the making."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """width, height: in pixels. title: the line above."""
        self.width, self.height = width, height
        self.parts = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
        self.text(12, 22, title, 'font-size="14" font-weight="bold"')

    def text(self, x: float, y: float, words: str, how: str = "") -> None:
        """Write words that begin at x, unless `how` says otherwise."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(words)}</text>')

    def line(self, points: list[tuple[float, float]], colour: str, width: float = 1) -> None:
        """Draw through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Fill a box."""
        size = f'width="{max(width, 1):.1f}" height="{height}"'
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{colour}"/>')

    def save(self, path: Path) -> None:
        """Write it."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" {STYLE}>'
        path.write_text("\n".join([head, *self.parts, "</svg>", ""]))


def newest(path: Path) -> dict[str, Any]:
    """Read the newest line of each name."""
    return {x["name"]: x for x in map(json.loads, path.read_text().splitlines())}


def decode(result: dict[str, Any], path: Path) -> None:
    """Draw what each way adds to a step, on a logarithmic scale."""
    off = result["arms"]["off"]["us"]
    arms = [(n, a["added_us"]) for n, a in result["arms"].items() if n != "off"]
    title = f"Added to a decode step of {off / 1000:.2f} ms, microseconds ({result['name'].removeprefix('decode: ')})"
    p = Picture(760, 60 + 26 * len(arms) + 24, title)
    left, width, low, high = 300.0, 380.0, 1.0, 10000.0

    def at(us: float) -> float:
        return left + width * math.log10(min(max(us, low), high) / low) / math.log10(high / low)

    bottom = 44 + 26 * len(arms)
    for mark in (1, 10, 100, 1000, 10000):
        p.line([(at(mark), 38), (at(mark), bottom)], "#e9ecef")
        p.text(at(mark), bottom + 16, f"{mark:,}", 'text-anchor="middle" fill="#868e96"')
    for i, (name, us) in enumerate(arms):
        y = 44 + 26 * i
        p.text(left - 8, y + 13, name, 'text-anchor="end"')
        p.bar(left, y, at(us) - left, 18, COLOURS["sonde" if name.startswith("sonde") else "peer"])
        p.text(at(us) + 6, y + 13, f"{us:,.0f} ({100 * us / off:.2f} %)")
    p.save(path)


def serving(result: dict[str, Any], path: Path) -> None:
    """Draw latencies over the rate of arrivals."""
    p = Picture(760, 330, "Requests that arrive one by one: milliseconds over requests a second")
    rates = sorted(result["rates"], key=float)
    arms = [a for a in result["rates"][rates[0]] if a != "off again"]
    colours = dict(zip(arms, (COLOURS["off"], COLOURS["sonde"], COLOURS["more"]), strict=False))
    panels = (("first_token", "p50", "first token, p50"), ("first_token", "p99", "first token, p99"),
              ("per_token", "p50", "further tokens, p50"), ("per_token", "p99", "further tokens, p99"))  # fmt: skip
    for n, (what, quantile, words) in enumerate(panels):
        left, top, width, height = 48 + 182 * n, 60, 140, 210
        values = {a: [result["rates"][r][a][what][quantile] for r in rates] for a in arms}
        high = 1.1 * max(max(v) for v in values.values())
        p.text(left, top - 8, words)
        p.line([(left, top), (left, top + height), (left + width, top + height)], "#868e96")
        p.text(left - 4, top + 8, f"{high:.0f}", 'text-anchor="end" fill="#868e96"')
        p.text(left - 4, top + height, "0", 'text-anchor="end" fill="#868e96"')
        last = float(rates[-1])
        for r in rates:
            x = left + width * float(r) / last
            p.text(x, top + height + 16, r, 'text-anchor="middle" fill="#868e96"')
        for a in arms:
            points = [(left + width * float(r) / last, top + height * (1 - v / high))
                      for r, v in zip(rates, values[a], strict=True)]  # fmt: skip
            p.line(points, colours[a], 2)
    for n, a in enumerate(arms):
        p.bar(60 + 180 * n, 304, 14, 10, colours[a])
        p.text(80 + 180 * n, 313, a)
    p.save(path)


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl", help="file of results")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures (docs)")
    given = parser.parse_args()
    found = newest(given.results)
    decode(found["decode: qwen3-8b, graph, batch 8"], given.out / "performance-decode.svg")
    serving(found["serving: qwen3-8b"], given.out / "performance-serving.svg")


if __name__ == "__main__":
    main()
