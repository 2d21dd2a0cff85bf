#!/usr/bin/env python
"""Convert VIPSeg to 720p and to COCO's panoptic format (see datasets/README.md).

    python datasets/prepare_vipseg.py --source VIPSeg --target datasets/VIPSeg/VIPSeg_720P

The source has imgs, panomasks, train.txt, val.txt and test.txt.
A stopped conversion continues when the command is repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvis.data.prepare import convert_vipseg
from dvis.data.prepare.program import run_conversion


def main(arguments: list[str] | None = None) -> None:
    description = __doc__.splitlines()[0]
    run_conversion(
        convert_vipseg,
        description,
        source="VIPSeg",
        target="VIPSeg/VIPSeg_720P",
        height=720,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
