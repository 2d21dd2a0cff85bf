"""An evaluation as text, as CSV of its categories and as one self-contained HTML file."""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import re
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from dvis.data.files import atomic_path
from dvis.evaluation.strips import Image
from dvis.evaluation.tasks import Chart, Evaluation, VideoScore

__all__ = ["as_text", "write_csv", "write_html"]

NUM_SHOWN_VIDEOS = 5  # worst and best
NUM_TEXT_COLUMNS = 4  # scores of a category that fit a terminal

_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2em auto; max-width: 70em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; display: block; margin: .3em 0; }
.wide { overflow-x: auto; }
"""


def as_text(evaluation: Evaluation) -> str:
    """The summary and the categories that occur, in percent."""
    rows = [(name, _percent(value)) for name, value in evaluation.summary]
    parts = [evaluation.title]
    parts += evaluation.printed or [tabulate(rows, headers=("metric", "%"), disable_numparse=True)]
    columns = _main_columns(evaluation)[:NUM_TEXT_COLUMNS]
    categories = [
        [row["name"], *(_percent(row[column]) for column in columns)]
        for row in evaluation.categories
        if row[columns[0]] is not None
    ]
    parts.append(tabulate(categories, headers=["category", *columns], disable_numparse=True))
    return "\n".join(parts)


def write_csv(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """One line per category; fractions in full precision, empty where nothing is defined."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, fieldnames=list(evaluation.categories[0] if evaluation.categories else [])
        )
        writer.writeheader()
        writer.writerows(evaluation.categories)


def write_html(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """A report that needs no other file: plots and strips are inside.

    Raises:
        FileNotFoundError, ValueError: if a strip's frame is missing or broken.
    """
    columns = _main_columns(evaluation)
    parts = [
        f"<h1>{html.escape(evaluation.title)}</h1>",
        _table(("metric", "%"), [(name, _percent(value)) for name, value in evaluation.summary]),
        *(
            _image(_draw(chart), "png", chart.title)
            for chart in evaluation.charts
            if any(chart.series.values())
        ),
        "<h2>Categories</h2>",
        _table(
            ("category", *columns),
            [(row["name"], *(_percent(row[column]) for column in columns)) for row in evaluation.categories],
        ),
    ]
    if evaluation.videos:
        parts += _video_sections(evaluation)
    title = html.escape(evaluation.title)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _video_sections(evaluation: Evaluation) -> list[str]:
    """Worst and best videos, with strips if there are frames, then the table of all."""
    ranked = sorted(
        (v for v in evaluation.videos if v.score is not None), key=lambda video: video.score or 0.0
    )
    worst = ranked[:NUM_SHOWN_VIDEOS]
    best = [video for video in ranked[::-1][:NUM_SHOWN_VIDEOS] if video not in worst]
    parts = []
    for title, videos in (("Worst videos", worst), ("Best videos", best)):
        parts.append(f"<h2>{title}</h2>")
        for video in videos:
            parts.append(f"<h3>{html.escape(_describe(video, evaluation.video_metric))}</h3>")
            if evaluation.strips is not None:
                for name, strip in evaluation.strips(video.name):
                    parts.append(f'{name}<div class="wide">{_image(_as_jpeg(strip), "jpeg", name)}</div>')
    rows = [(video.name, video.num_frames, _percent(video.score)) for video in evaluation.videos]
    table = _table(("video", "frames", f"{evaluation.video_metric} %"), rows)
    return [*parts, f"<details><summary>All {len(rows)} videos</summary>{table}</details>"]


def _describe(video: VideoScore, metric: str) -> str:
    return f"{video.name}: {metric} {_percent(video.score)}, {video.num_frames} frames"


def _main_columns(evaluation: Evaluation) -> list[str]:
    """The score columns that fit a page: those of single windows are left to the CSV."""
    keys = list(evaluation.categories[0]) if evaluation.categories else []
    return [key for key in keys if key not in ("id", "name", "isthing") and not re.search(r"_\d+$", key)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(headers, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _image(content: bytes, kind: str, text: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/{kind};base64,{data}">'


def _as_jpeg(image: Image) -> bytes:
    from PIL import Image as PillowImage

    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _draw(chart: Chart) -> bytes:
    """The chart as PNG: lines over numbers, bars over names (lying if they are many)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lying = len(chart.x) > 8 and isinstance(chart.x[0], str)
    figure = Figure(figsize=(7, max(3.5, 0.22 * len(chart.x)) if lying else 3.5), layout="constrained")
    axes = figure.subplots()
    for name, values in chart.series.items():
        known = [float("nan") if value is None else value for value in values]
        if not isinstance(chart.x[0], str) or len(chart.series) > 1:
            axes.plot(chart.x, known, label=name, marker="" if len(chart.x) > 20 else "o")
        elif lying:
            axes.barh(chart.x, known)
            axes.invert_yaxis()
        else:
            axes.bar(chart.x, known)
            axes.set_xlim(-0.6, max(len(chart.x), 4) - 0.4)  # no bar as wide as the chart
    if len(chart.series) > 1:
        axes.legend()
    axes.set_title(chart.title)
    axes.set_xlabel(chart.y_label if lying else chart.x_label)
    axes.set_ylabel(chart.x_label if lying else chart.y_label)
    (axes.set_xlim if lying else axes.set_ylim)(0, 1)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
