"""Errors of data sets; each message names the file and, where there is one, the video and the annotation."""

from __future__ import annotations

__all__ = ["BrokenDataError", "MissingDataError"]


class MissingDataError(FileNotFoundError):
    """A file or folder of a data set is not where it was expected."""


class BrokenDataError(ValueError):
    """A file of a data set cannot be read or contradicts another one."""
