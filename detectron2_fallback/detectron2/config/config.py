"""``CfgNode``, and the decorator that lets a class be built from a config or from plain arguments."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import IO, Any

from detectron2.utils.file_io import PathManager
from fvcore.common.config import CfgNode as _CfgNode

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]


class CfgNode(_CfgNode):
    """fvcore's ``CfgNode`` with versions: a file of an older version is converted while it is merged.

    Files may have ``_BASE_`` (a path or a list of paths, relative to the file), which is merged first.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str] | IO[bytes]:
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a YAML file into this node.

        Args:
            cfg_filename: its path or URL.
            allow_unsafe: fall back to ``yaml.unsafe_load`` for files with Python tags. Such files can run any
                code, so read them before you use them.

        Raises:
            AssertionError: if the file does not exist, or a version does not fit.
            KeyError: if the file has a key that this node lacks.
            ValueError: if a value has another type than the default.
        """
        from .compat import downgrade_config, guess_version, upgrade_config
        from .defaults import _C

        assert PathManager.isfile(cfg_filename), f"Config file '{cfg_filename}' does not exist!"
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))

        assert self.VERSION == _C.VERSION, (
            "CfgNode.merge_from_file is only allowed on a config object of latest version!"
        )
        version = loaded.get("VERSION", None)
        if version is None:
            version = guess_version(loaded, cfg_filename)
        assert version <= self.VERSION, f"Cannot merge a v{version} config into a v{self.VERSION} config."

        if version == self.VERSION:
            self.merge_from_other_cfg(loaded)
            return
        logging.getLogger(__name__).warning(
            "Config file '%s' has the old version %s; upgrading it to version %s.",
            cfg_filename,
            version,
            self.VERSION,
        )
        old = downgrade_config(self, to_version=version)
        old.merge_from_other_cfg(loaded)
        upgraded = upgrade_config(old)
        self.clear()
        self.update(upgraded)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the tree as YAML; arguments go to ``yaml.safe_dump``."""
        return super().dump(*args, **kwargs)


global_cfg = CfgNode()
"""A config for code that cannot be handed one; filled by :func:`set_global_cfg`."""


def get_cfg() -> CfgNode:
    """Return a copy of the default config."""
    from .defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Let :data:`global_cfg` have the content of ``cfg``, whose nodes it then shares."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(
    init_func: Callable[..., Any] | None = None, *, from_config: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Let a function or an ``__init__`` be called with a config as well as with explicit arguments.

    ``@configurable`` on ``__init__`` uses the class's ``from_config(cls, cfg, ...)``, a classmethod;
    ``@configurable(from_config=f)`` on a function uses ``f(cfg, ...)``. Both return a dict of arguments.
    When the call has a config as first positional argument or as keyword ``cfg``, the arguments that
    ``from_config`` names go to it, and the other keywords replace what it returned.

    Raises:
        AssertionError: if the decorator is used on something else.
        AttributeError, TypeError: when called, if ``from_config`` is missing or is no classmethod, or if its
            first argument is not named ``cfg``.
    """
    if init_func is not None:
        decorates_init = inspect.isfunction(init_func) and init_func.__name__ == "__init__"
        assert decorates_init and from_config is None, (  # noqa: PT018
            "Incorrect use of @configurable: it decorates `__init__`, or takes `from_config=` for a function."
        )
        return _configurable_init(init_func)
    if from_config is None:
        return configurable  # written with empty parentheses
    assert inspect.isfunction(from_config), "from_config argument of configurable must be a function!"
    return functools.partial(_configurable_function, from_config)


def _configurable_init(init_func: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            from_config = type(self).from_config
        except AttributeError as e:
            raise AttributeError("Class with @configurable must have a 'from_config' classmethod.") from e
        if not inspect.ismethod(from_config):
            raise TypeError("Class with @configurable must have a 'from_config' classmethod.")
        if _called_with_cfg(*args, **kwargs):
            init_func(self, **_get_args_from_config(from_config, *args, **kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(
    from_config: Callable[..., Any], function: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _called_with_cfg(*args, **kwargs):
            return function(**_get_args_from_config(from_config, *args, **kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config  # type: ignore[attr-defined]
    return wrapped


def _get_args_from_config(from_config: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Call ``from_config`` with what it accepts and add the other keywords to the dict it returns."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        owner = getattr(from_config, "__self__", None)
        name = from_config.__name__ if owner is None else f"{owner}.from_config"
        raise TypeError(f"{name} must take 'cfg' as the first argument!")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameter.kind in variadic for parameter in parameters.values()):
        return from_config(*args, **kwargs)
    accepted = {name: value for name, value in kwargs.items() if name in parameters}
    explicit = from_config(*args, **accepted)
    explicit.update({name: value for name, value in kwargs.items() if name not in parameters})
    return explicit


def _called_with_cfg(*args: Any, **kwargs: Any) -> bool:
    omegaconf = sys.modules.get("omegaconf")  # whoever holds a DictConfig has imported it
    kinds = (_CfgNode,) if omegaconf is None else (_CfgNode, omegaconf.DictConfig)
    return (len(args) > 0 and isinstance(args[0], kinds)) or isinstance(kwargs.get("cfg"), kinds)
