"""Contract tests: what they ask of detectron2 holds for upstream 0.6 and for the bundled subset."""

import detectron2_fallback  # noqa: F401  (before any test module imports detectron2)
