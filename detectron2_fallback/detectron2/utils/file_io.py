"""The path manager of detectron2: local files, URLs, and its own ``detectron2://`` scheme."""

from __future__ import annotations

from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathHandler", "PathManager"]

PathManager = PathManagerBase()
"""Used for every file of this package; other projects have path managers of their own."""


class Detectron2Handler(PathHandler):
    """Resolves ``detectron2://<name>``, a file of detectron2's public model storage."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _url(self, path: str) -> str:
        return self.S3_DETECTRON2_PREFIX + path[len(self.PREFIX) :]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        url = self._url(path)
        try:
            return PathManager.get_local_path(url, force=force, **kwargs)
        except OSError as error:  # urllib's URLError is one
            raise self._cannot_download(path, url, error) from error

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[str] | IO[bytes]:
        url = self._url(path)
        try:
            return PathManager.open(url, mode, buffering, **kwargs)
        except OSError as error:
            raise self._cannot_download(path, url, error) from error

    @staticmethod
    def _cannot_download(path: str, url: str, error: OSError) -> OSError:
        return OSError(
            f"Cannot download {url} for '{path}': {error}. Without a connection, fetch the file on another "
            "machine and give its local path instead."
        )


PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(OneDrivePathHandler())
PathManager.register_handler(Detectron2Handler())
