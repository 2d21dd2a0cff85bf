"""A picture sheet of the toy world: one row per difficulty level, frames spread over a video.

Source: project choice.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dvis.data.toy.scene import LEVELS, render_video
from dvis.data.toy.writer import SPLITS
from dvis.visualization import draw_instances

_TITLE_WIDTH = 84
_GAP = 4


def picture_sheet(
    seed: int = 0, num_frames: int = 6, height: int = 96, width: int = 128, outlines: bool = False
) -> NDArray[np.uint8]:
    """Render a validation video of every level and lay some of its frames side by side.

    Args:
        seed: as of the data sets; the first level shows ``val_0004``, the second ``val_0005``, ...
        num_frames: pictures per level.
        height: of a frame in pixels.
        width: of a frame in pixels.
        outlines: draw the outline of every object in the colour of its identity.

    Returns:
        The sheet, RGB ``H W 3``.
    """
    sheet = Image.new(
        "RGB",
        (_TITLE_WIDTH + num_frames * (width + _GAP), len(LEVELS) * (height + _GAP) - _GAP),
        (255, 255, 255),
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for row, (name, level) in enumerate(LEVELS.items()):
        video = render_video(
            np.random.default_rng([seed, SPLITS.index("val"), 4 + row]), height, width, level.length, level
        )
        top = row * (height + _GAP)
        title = f"{name.replace('_', chr(10))}\n\n{level.length} frames"
        pen.multiline_text((2, top + 2), title, fill=(0, 0, 0), font=font)
        for column, t in enumerate(np.linspace(0, level.length - 1, num_frames).round().astype(int)):
            frame = video.frames[t]
            if outlines:
                numbers = [int(n) for n in np.unique(video.instances[t]) if n]
                masks = [video.instances[t] == n for n in numbers]
                frame = draw_instances(frame, masks, numbers, [""] * len(numbers), alpha=0.0)
            sheet.paste(Image.fromarray(frame), (_TITLE_WIDTH + column * (width + _GAP) + _GAP, top))
    return np.asarray(sheet)


def write_sheet(path: str | os.PathLike[str], seed: int = 0, outlines: bool = False) -> None:
    """Write `picture_sheet` as a small file: PNG of 256 colours, or whatever the suffix says."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture_sheet(seed, outlines=outlines))
    if path.suffix.lower() == ".png":
        image = image.quantize(256, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
