"""Long conversions video by video: parallel, with a progress bar, and restartable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from dvis.data.files import read_json, write_json

__all__ = ["run_per_video"]

Work = Callable[..., Any]


def run_per_video(
    work: Work, jobs: Mapping[str, tuple[Any, ...]], records: Path, workers: int | None, title: str
) -> dict[str, Any]:
    """Call ``work`` for every video that has no record yet, in several processes.

    Args:
        work: a function at the top level of a module; returns what goes into the video's record (JSON). A
            video that was stopped in the middle is done again.
        jobs: arguments of ``work`` by video, in the order of the result.
        records: folder of the records.
        workers: processes; None: one per core.
        title: of the progress bar.

    Returns:
        what ``work`` returned, by video.

    Raises:
        Whatever ``work`` raises; videos that are finished keep their records.
    """
    paths = {video: records / f"{quote(video, safe='')}.json" for video in jobs}
    pending = [video for video in jobs if not paths[video].exists()]
    workers = min(workers or os.cpu_count() or 1, max(len(pending), 1))
    with tqdm(total=len(jobs), initial=len(jobs) - len(pending), desc=title, unit="video") as bar:
        if workers == 1:
            for video in pending:
                _work_and_record(work, jobs[video], paths[video])
                bar.update()
        else:
            with ProcessPoolExecutor(workers) as pool:
                futures = [pool.submit(_work_and_record, work, jobs[v], paths[v]) for v in pending]
                try:
                    for future in as_completed(futures):
                        future.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return {video: read_json(path) for video, path in paths.items()}


def _work_and_record(work: Work, arguments: tuple[Any, ...], path: Path) -> None:
    write_json(path, work(*arguments))
