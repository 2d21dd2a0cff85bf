"""Installs the packages; the deformable attention op is built in place by its own ``make.sh`` (optional)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    source = (ROOT / "dvis" / "provenance.py").read_text(encoding="utf-8")
    return source.partition('VERSION = "')[2].partition('"')[0]


def requirements() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line]


setup(
    name="dvis",
    version=version(),
    description="Universal video segmentation on detectron2: DVIS, MinVIS and relatives",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["dvis*", "mask2former*", "detectron2_fallback*"]),
    package_data={
        "dvis": ["data/categories/*.json"],
        "detectron2_fallback": ["detectron2/data/datasets/*.json"],
        "mask2former": ["modeling/pixel_decoder/ops/**/*"],
    },
    install_requires=requirements(),
)
