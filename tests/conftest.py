"""Makes detectron2 importable before any test module is, whichever one is installed."""

import detectron2_fallback  # noqa: F401
