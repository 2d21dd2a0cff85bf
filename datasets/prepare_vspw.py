#!/usr/bin/env python
"""Convert VSPW to 480p (see datasets/README.md).

    python datasets/prepare_vspw.py --source VSPW --target datasets/VSPW_480p

The source has data/<video>/{origin,mask} and train.txt, val.txt, test.txt.
A stopped conversion continues when the command is repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvis.data.prepare import convert_vspw
from dvis.data.prepare.program import run_conversion


def main(arguments: list[str] | None = None) -> None:
    description = __doc__.splitlines()[0]
    run_conversion(
        convert_vspw, description, source="VSPW", target="VSPW_480p", height=480, arguments=arguments
    )


if __name__ == "__main__":
    main()
