"""The data sets under their published names: where their files lie and how they are loaded.

Importing this module registers names with detectron2's catalogs and opens no file of a data set. Files are
looked for below the folder in the environment variable ``DETECTRON2_DATASETS`` (default ``./datasets``) when
a data set is loaded.

A loaded data set is a list of *records*, one per video; an image is a video of one frame:

    video_id            as in the annotation file
    source              the annotation file, for messages
    file_names          image of each frame
    length              number of frames
    height, width       in pixels (absent for semantic data, which does not say)
    annotations         instances: list of {id, category_id, iscrowd, segmentations (per frame, or None)}
    pan_seg_file_names  panoptic: PNG of each frame, and
    segments_infos      per frame a list of {id, category_id, iscrowd}
    sem_seg_file_names  semantic: label map of each frame

``category_id`` is the class index. Records of splits without public ground truth have none of the last four.

Source: data set formats as published by the benchmarks.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from dvis.data.categories import load_categories, load_mapping
from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.files import read_json
from dvis.data.readers import AnnotationReader, read_instances, read_panoptic, semantic_reader
from dvis.data.toy.scene import LEVELS as TOY_LEVELS
from dvis.data.toy.scene import toy_name

__all__ = [
    "DATASETS",
    "KINDS",
    "DatasetSpec",
    "data_root",
    "get_spec",
    "load_image_instances",
    "load_panoptic_videos",
    "load_semantic_videos",
    "load_video_instances",
    "register_dataset",
    "require_path",
]

KINDS = ("video_instance", "video_panoptic", "video_semantic", "image_instance", "image_panoptic")
ROOT_VARIABLE = "DETECTRON2_DATASETS"

Record = dict[str, Any]


@dataclass(frozen=True)
class DatasetSpec:
    """One split of a data set. Paths are relative to the root folder, or absolute.

    Attributes:
        name: under which it is registered.
        kind: what a record is, one of ``KINDS``.
        categories: name of the category table.
        annotations: annotation file: JSON, or for semantic data the list of videos.
        images: folder of the images, or for semantic data of the videos.
        masks: folder of panoptic PNGs.
        evaluator: name of the evaluation protocol, "" if there is none.
        how_to_get: what to do when files are missing.
        rows: the category table itself, where it is none of ``dvis.data.categories``; ``categories`` then
            says which file it is from.
    """

    name: str
    kind: str
    categories: str
    annotations: str
    images: str
    masks: str = ""
    evaluator: str = ""
    how_to_get: str = "see datasets/README.md"
    rows: tuple[dict[str, Any], ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"data set {self.name}: the kind must be one of {KINDS}, got {self.kind!r}")

    @property
    def annotation_path(self) -> Path:
        return data_root() / self.annotations

    @property
    def image_root(self) -> Path:
        return data_root() / self.images

    @property
    def mask_root(self) -> Path:
        return data_root() / self.masks

    def check_files(self) -> None:
        """Raise `MissingDataError` if the annotation file or a folder is missing."""
        paths = [self.annotation_path, self.image_root] + ([self.mask_root] if self.masks else [])
        for path in paths:
            require_path(path, self.name, self.how_to_get)

    def load(self, tolerant: bool = False) -> list[Record]:
        """Load the records.

        Args:
            tolerant: keep videos whose annotations are broken, with what is wrong as ``fault``, instead of
                raising it. Files that are broken as a whole are errors in any case.

        Raises:
            MissingDataError: if a file or folder is missing; says where it was expected and how to get it.
            BrokenDataError: if the annotations are not what they should be.
        """
        self.check_files()
        return _LOADERS[self.kind](self, tolerant)

    def class_of_id(self) -> dict[int, int]:
        """Class index of each category id of the annotation file."""
        return {row["id"]: row[self._index_key] for row in self._rows()}

    def class_names(self) -> list[str]:
        return [row["name"] for row in self._rows()]

    def reader(self) -> AnnotationReader:
        """What reads a frame's annotations from a record."""
        if self.kind.endswith("instance"):
            return read_instances
        if self.kind.endswith("panoptic"):
            return read_panoptic
        return semantic_reader({row["raw_mask_label"]: row[self._index_key] for row in self._rows()})

    def class_map_to(self, target: DatasetSpec) -> dict[int, int]:
        """Class index of the target for each class of this data set that has one there.

        The user's own data sets are mapped by the names of the classes.

        Raises:
            ValueError: if there is no mapping between the two category tables.
        """
        if self.rows or target.rows:
            index_of_name = {name: index for index, name in enumerate(target.class_names())}
            names = enumerate(self.class_names())
            mapping = {index: index_of_name[name] for index, name in names if name in index_of_name}
            if not mapping:
                raise ValueError(f"{self.name} and {target.name} have no class name in common")
            return mapping
        if self.categories == target.categories:
            return {index: index for index in self.class_of_id().values()}
        if self.categories != "coco_panoptic":
            raise ValueError(
                f"there is no mapping from the categories of {self.name} to those of {target.name}"
            )
        try:
            mapping = load_mapping(target.categories)
        except KeyError as error:
            raise ValueError(f"{self.name} to {target.name}: {error.args[0]}") from error
        own, other = self.class_of_id(), target.class_of_id()
        return {own[source_id]: other[target_id] for source_id, target_id in mapping.items()}

    def metadata(self) -> dict[str, Any]:
        """Names, colours and numbering of the classes, as detectron2's metadata."""
        rows = self._rows()
        names, colors = [row["name"] for row in rows], [row["color"] for row in rows]
        things = {row["id"]: row[self._index_key] for row in rows if row["isthing"]}
        known = {
            "evaluator_type": self.evaluator,
            "thing_classes": names,
            "thing_colors": colors,
            "thing_dataset_id_to_contiguous_id": things,
        }
        if self.kind.endswith("instance"):
            return known
        # As detectron2 does for COCO panoptic: both lists hold all names, so that a class index fits either.
        stuff = {row["id"]: row[self._index_key] for row in rows if not row["isthing"]}
        return {
            **known,
            "stuff_classes": names,
            "stuff_colors": colors,
            "stuff_dataset_id_to_contiguous_id": stuff,
            "ignore_label": 255,
            "label_divisor": 1000,
        }

    @property
    def _index_key(self) -> str:
        if self.categories == "coco_panoptic" and not self.rows:
            return "thing_contiguous_id" if self.kind.endswith("instance") else "panoptic_contiguous_id"
        return "contiguous_id" if self.kind.endswith("instance") else "contiguous_id_things_first"

    def _rows(self) -> list[dict[str, Any]]:
        """Categories that belong to this kind of data, by class index."""
        table = self.rows or load_categories(self.categories)
        rows = [row for row in table if self._index_key in row]
        return sorted(rows, key=lambda row: row[self._index_key])


DATASETS: dict[str, DatasetSpec] = {}
"""All data sets registered here, by name."""


def data_root() -> Path:
    """The folder that holds all data sets."""
    return Path(os.environ.get(ROOT_VARIABLE) or "datasets").expanduser()


def require_path(path: Path, name: str, how_to_get: str) -> None:
    """Raise `MissingDataError` if a file or folder of the data set ``name`` is missing."""
    if not path.exists():
        value = os.environ.get(ROOT_VARIABLE)
        state = f"is {value}" if value else "is not set, which means ./datasets"
        raise MissingDataError(
            f"data set {name}: {path.absolute()} is missing. Data sets are looked for below the "
            f"folder in the environment variable {ROOT_VARIABLE} (it {state}). "
            f"To get it: {how_to_get}"
        )


def register_dataset(spec: DatasetSpec) -> None:
    """Register a data set with detectron2's catalogs; nothing is opened.

    Raises:
        AssertionError: if the name is taken.
    """
    DatasetCatalog.register(spec.name, spec.load)
    MetadataCatalog.get(spec.name).set(**spec.metadata())
    DATASETS[spec.name] = spec


def get_spec(name: str) -> DatasetSpec:
    """The data set of this name.

    Raises:
        KeyError: if it is not registered; lists the names.
    """
    if name not in DATASETS:
        raise KeyError(f"data set {name!r} is not known; known are: {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


# ---- loaders


def load_video_instances(
    json_path: Path, image_root: Path, class_of_id: Mapping[int, int], tolerant: bool = False
) -> list[Record]:
    """Videos with tracks, in YouTube-VIS or OVIS form. ``annotations`` may be missing or null.

    Args:
        json_path: annotation file.
        image_root: folder to which the file names are relative.
        class_of_id: class index of each category id.
        tolerant: see ``DatasetSpec.load``.

    Raises:
        BrokenDataError: for an unknown category or video, or lists of a wrong length; names file, video,
            annotation.
    """
    content = _read_object(json_path, ("videos",))
    has_annotations = content.get("annotations") is not None
    records: dict[Any, Record] = {}
    for video in content["videos"]:
        where = f"{json_path}, video {_name(video, 'id')}"
        with _entry(where):
            _require(video, ("id", "file_names", "height", "width"), where)
            _add(
                records, _record(json_path, video, [image_root / name for name in video["file_names"]]), where
            )
    for record in records.values() if has_annotations else ():
        record["annotations"] = []
    for annotation in content.get("annotations") or []:
        video_id = _name(annotation, "video_id")
        where = f"{json_path}, video {video_id}, annotation {_name(annotation, 'id')}"
        with _entry(where):
            _require(annotation, ("id", "video_id", "category_id", "segmentations"), where)
            if annotation["video_id"] not in records:
                raise BrokenDataError(f"{where}: there is no such video")
        record = records[annotation["video_id"]]
        with _entry(where, record if tolerant else None):
            masks = annotation["segmentations"]
            boxes = annotation.get("bboxes") or [True] * len(masks)
            if not len(masks) == len(boxes) == record["length"]:
                counts = f"{len(masks)} segmentations and {len(boxes)} boxes"
                raise BrokenDataError(f"{where}: {counts} for {record['length']} frames")
            # An object is visible where it has both.
            visible = [mask if box else None for mask, box in zip(masks, boxes, strict=True)]
            record["annotations"].append(_annotation(annotation, visible, class_of_id, where))
    return list(records.values())


def load_image_instances(
    json_path: Path, image_root: Path, class_of_id: Mapping[int, int], tolerant: bool = False
) -> list[Record]:
    """Images with objects in COCO form, as videos of one frame; see :func:`load_video_instances`."""
    content = _read_object(json_path, ("images",))
    has_annotations = content.get("annotations") is not None
    records: dict[Any, Record] = {}
    for image in content["images"]:
        where = f"{json_path}, image {_name(image, 'id')}"
        with _entry(where):
            _require(image, ("id", "file_name", "height", "width"), where)
            _add(records, _record(json_path, image, [image_root / image["file_name"]]), where)
    for record in records.values() if has_annotations else ():
        record["annotations"] = []
    for annotation in content.get("annotations") or []:
        where = f"{json_path}, image {_name(annotation, 'image_id')}, annotation {_name(annotation, 'id')}"
        with _entry(where):
            _require(annotation, ("id", "image_id", "category_id", "segmentation"), where)
            if annotation["image_id"] not in records:
                raise BrokenDataError(f"{where}: there is no such image")
        record = records[annotation["image_id"]]
        with _entry(where, record if tolerant else None):
            masks = [annotation["segmentation"]]
            record["annotations"].append(_annotation(annotation, masks, class_of_id, where))
    return list(records.values())


def load_panoptic_videos(
    json_path: Path,
    image_root: Path,
    mask_root: Path,
    class_of_id: Mapping[int, int],
    tolerant: bool = False,
) -> list[Record]:
    """Videos with colour-coded segments, in VIPSeg form.

    Args:
        json_path: annotation file.
        image_root: folder with ``<video>/<frame>.jpg``.
        mask_root: folder with ``<video>/<frame>.png``.
        class_of_id: class index of each category id.
        tolerant: see ``DatasetSpec.load``.

    Raises:
        BrokenDataError: for an unknown category, or videos and annotations that do not fit; names file and
            video.
    """
    content = _read_object(json_path, ("videos", "annotations"))
    frames_of: dict[Any, Any] = {}
    for entry in content["annotations"]:
        where = f"{json_path}, video {_name(entry, 'video_id')}"
        with _entry(where):
            _require(entry, ("video_id", "annotations"), where)
            frames_of[entry["video_id"]] = entry["annotations"]
    records: dict[Any, Record] = {}
    for video in content["videos"]:
        where = f"{json_path}, video {_name(video, 'video_id')}"
        with _entry(where):
            _require(video, ("video_id", "images"), where)
            name, images = video["video_id"], video["images"]
            # Published files name the images like the masks.
            files = [(image_root / name / image["file_name"]).with_suffix(".jpg") for image in images]
            first = images[0] if images else {"height": 0, "width": 0}
            record = _record(
                json_path, {"id": name, "height": first["height"], "width": first["width"]}, files
            )
            _add(records, record, where)
        with _entry(where, record if tolerant else None):
            frames = frames_of.get(name)
            if frames is None or len(frames) != len(images):
                found = "no" if frames is None else len(frames)
                raise BrokenDataError(f"{where}: {len(images)} images, {found} annotated frames")
            record["pan_seg_file_names"] = [str(mask_root / name / frame["file_name"]) for frame in frames]
            record["segments_infos"] = [_segments(frame, class_of_id, where) for frame in frames]
    return list(records.values())


def load_panoptic_images(
    json_path: Path,
    image_root: Path,
    mask_root: Path,
    class_of_id: Mapping[int, int],
    tolerant: bool = False,
) -> list[Record]:
    """Images with colour-coded segments, in COCO form, as videos of one frame without a size."""
    content = _read_object(json_path, ("annotations",))
    records: dict[Any, Record] = {}
    for entry in content["annotations"]:
        where = f"{json_path}, image {_name(entry, 'image_id')}"
        with _entry(where):
            _require(entry, ("image_id", "file_name", "segments_info"), where)
            record = {
                "video_id": entry["image_id"],
                "source": str(json_path),
                "file_names": [str((image_root / entry["file_name"]).with_suffix(".jpg"))],
                "length": 1,
                "pan_seg_file_names": [str(mask_root / entry["file_name"])],
            }
            _add(records, record, where)
        with _entry(where, record if tolerant else None):
            record["segments_infos"] = [_segments(entry, class_of_id, where)]
    return list(records.values())


def load_semantic_videos(list_path: Path, video_root: Path, tolerant: bool = False) -> list[Record]:
    """Videos with label maps, in VSPW form: ``<video>/origin/<frame>.jpg`` and ``<video>/mask/<frame>.png``.

    Args:
        list_path: text file with one video per line.
        video_root: folder of the videos.
        tolerant: see ``DatasetSpec.load``.

    Raises:
        BrokenDataError: if the list is not text.
        MissingDataError: if a listed video has no images.
    """
    records = []
    try:
        names = list_path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise BrokenDataError(f"{list_path} is not a text file: {error}") from error
    for name in names:
        images = sorted((video_root / name / "origin").glob("*.jpg"))
        if not images and not tolerant:
            raise MissingDataError(_no_images(list_path, name, video_root))
        mask_root = video_root / name / "mask"
        record = {
            "video_id": name,
            "source": str(list_path),
            "file_names": [str(image) for image in images],
            "length": len(images),
        }
        if not images:
            record["fault"] = _no_images(list_path, name, video_root)
        if mask_root.exists():
            record["sem_seg_file_names"] = [str(mask_root / f"{image.stem}.png") for image in images]
        records.append(record)
    return records


def _no_images(list_path: Path, name: str, video_root: Path) -> str:
    return f"{list_path}, video {name}: no images in {video_root / name / 'origin'}"


def _record(source: Path, entry: Mapping[str, Any], files: Sequence[Path]) -> Record:
    """The record of a video whose size is known."""
    return {
        "video_id": entry["id"],
        "source": str(source),
        "file_names": [str(file) for file in files],
        "length": len(files),
        "height": _pixels(entry["height"], "height"),
        "width": _pixels(entry["width"], "width"),
    }


def _add(records: dict[Any, Record], record: Record, where: str) -> None:
    if record["video_id"] in records:
        raise BrokenDataError(f"{where}: the id is there twice")
    records[record["video_id"]] = record


def _annotation(
    entry: Mapping[str, Any], masks: list[Any], class_of_id: Mapping[int, int], where: str
) -> dict[str, Any]:
    return {
        "id": entry["id"],
        "category_id": _class_index(entry["category_id"], class_of_id, where),
        "iscrowd": entry.get("iscrowd", 0),
        "segmentations": masks,
    }


def _segments(entry: Mapping[str, Any], class_of_id: Mapping[int, int], where: str) -> list[dict[str, Any]]:
    found = []
    for segment in entry["segments_info"]:
        place = f"{where}, {entry['file_name']}, segment {segment['id']}"
        if not isinstance(segment["id"], int) or not 0 <= segment["id"] < 2**24:
            raise BrokenDataError(f"{place}: the id is not a number that the colours of a mask can stand for")
        category = _class_index(segment["category_id"], class_of_id, place)
        found.append({"id": segment["id"], "category_id": category, "iscrowd": segment.get("iscrowd", 0)})
    return found


def _class_index(category_id: Any, class_of_id: Mapping[int, int], where: str) -> int:
    if category_id not in class_of_id:
        raise BrokenDataError(
            f"{where}: category {category_id} is not one of the data set's {sorted(class_of_id)}"
        )
    return class_of_id[category_id]


def _read_object(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with lists under ``keys``, and under ``annotations`` a list, null or nothing."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise BrokenDataError(f"{path}: expected a JSON object with {', '.join(keys)}")
    _require(content, keys, str(path))
    for key in {*keys, "annotations"}:
        value = content.get(key)
        if not isinstance(value, list) and (key in keys or value is not None):
            raise BrokenDataError(f"{path}: {key} must be a list, not {type(value).__name__}")
    return content


def _require(entry: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise BrokenDataError(f"{where}: expected an object with {', '.join(keys)}, not {entry!s:.80}")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise BrokenDataError(f"{where}: {', '.join(missing)} missing")


def _name(entry: Any, key: str) -> Any:
    """What an entry is called, for messages."""
    return entry.get(key, "?") if isinstance(entry, Mapping) else "?"


def _pixels(value: Any, key: str) -> int:
    # Some files write 720.0.
    if not isinstance(value, (int, float)) or value != value or value < 0 or value != int(value):
        raise ValueError(f"the {key} is {value!s:.80}")
    return int(value)


@contextmanager
def _entry(where: str, record: Record | None = None) -> Iterator[None]:
    """Say which entry of a file is at fault, whatever is wrong with it.

    Args:
        where: name of the entry.
        record: where to note the fault instead of raising it; it is raised when a clip of it is asked for.
    """
    try:
        yield
    except BrokenDataError as error:
        fault = error
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        fault = BrokenDataError(f"{where}: not in the expected form ({type(error).__name__}: {error!s:.200})")
    else:
        return
    if record is None:
        raise fault
    record.setdefault("fault", str(fault))


_LOADERS: dict[str, Callable[[DatasetSpec, bool], list[Record]]] = {
    "video_instance": lambda s, tolerant: load_video_instances(
        s.annotation_path, s.image_root, s.class_of_id(), tolerant
    ),
    "image_instance": lambda s, tolerant: load_image_instances(
        s.annotation_path, s.image_root, s.class_of_id(), tolerant
    ),
    "video_panoptic": lambda s, tolerant: load_panoptic_videos(
        s.annotation_path, s.image_root, s.mask_root, s.class_of_id(), tolerant
    ),
    "image_panoptic": lambda s, tolerant: load_panoptic_images(
        s.annotation_path, s.image_root, s.mask_root, s.class_of_id(), tolerant
    ),
    "video_semantic": lambda s, tolerant: load_semantic_videos(s.annotation_path, s.image_root, tolerant),
}


# ---- the published splits

_TOY = "python datasets/generate_toy.py"
_COCO = "download COCO 2017 from https://cocodataset.org"


def _youtube_vis(year: str) -> list[DatasetSpec]:
    how = f"download YouTube-VIS {year} from https://youtube-vos.org (see datasets/README.md)"
    splits = (("train", "train"), ("val", "valid"), ("test", "test"))
    return [
        DatasetSpec(
            f"ytvis_{year}_{split}",
            "video_instance",
            f"ytvis_{year}",
            f"ytvis_{year}/{folder}.json",
            f"ytvis_{year}/{folder}/JPEGImages",
            evaluator="ytvis",
            how_to_get=how,
        )
        for split, folder in splits
    ]


def _youtube_vis_2022() -> list[DatasetSpec]:
    """The training split is that of 2021; the others have its videos ("short") and long ones."""
    train = next(spec for spec in _youtube_vis("2021") if spec.name.endswith("train"))
    specs = [replace(train, name="ytvis_2022_train")]
    how = "download YouTube-VIS 2022 from https://youtube-vos.org (see datasets/README.md)"
    for split, folder in (("val", "valid"), ("test", "test")):
        for part in ("", "_short", "_long"):
            specs.append(
                DatasetSpec(
                    f"ytvis_2022_{split}{part}",
                    "video_instance",
                    "ytvis_2021",
                    f"ytvis_2022/{folder}/instances{part}.json",
                    f"ytvis_2022/{folder}/JPEGImages",
                    evaluator="ytvis",
                    how_to_get=f"{how}, then: python datasets/prepare_ytvis_2022.py" if part else how,
                )
            )
    return specs


def _published() -> list[DatasetSpec]:
    specs = [*_youtube_vis("2019"), *_youtube_vis("2021"), *_youtube_vis_2022()]
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        specs.append(
            DatasetSpec(
                f"ovis_{split}",
                "video_instance",
                "ovis",
                f"ovis/annotations/annotations_{folder}.json",
                f"ovis/{folder}",
                evaluator="ovis",
                how_to_get="download OVIS from https://songbai.site/ovis (see datasets/README.md)",
            )
        )
    for split in ("train", "val", "test"):
        specs.append(
            DatasetSpec(
                f"panoVSPW_vps_video_{split}",
                "video_panoptic",
                "vipseg_vspw",
                f"VIPSeg/VIPSeg_720P/panoptic_gt_VIPSeg_{split}.json",
                "VIPSeg/VIPSeg_720P/images",
                "VIPSeg/VIPSeg_720P/panomasksRGB",
                evaluator="vps",
                how_to_get="download VIPSeg from https://github.com/VIPSeg-Dataset/VIPSeg-Dataset, then: "
                "python datasets/prepare_vipseg.py --source FOLDER",
            )
        )
        specs.append(
            DatasetSpec(
                f"VSPW_vss_video_{split}",
                "video_semantic",
                "vipseg_vspw",
                f"VSPW_480p/{split}.txt",
                "VSPW_480p/data",
                evaluator="vss",
                how_to_get="download VSPW_480p, or VSPW in full size and then: python "
                "datasets/prepare_vspw.py --source FOLDER (see datasets/README.md)",
            )
        )
    for target in ("ytvis2019", "ytvis2021", "ovis"):
        for split in ("train", "val"):
            specs.append(
                DatasetSpec(
                    f"coco2{target}_{split}",
                    "image_instance",
                    "coco_panoptic",
                    f"coco/annotations/coco2{target}_{split}.json",
                    f"coco/{split}2017",
                    how_to_get=f"{_COCO}, then: python datasets/prepare_coco.py",
                )
            )
    for split in ("train", "val"):
        specs.append(
            DatasetSpec(
                f"coco_panoptic_video_{split}",
                "image_panoptic",
                "coco_panoptic",
                f"coco/annotations/panoptic_{split}2017.json",
                f"coco/{split}2017",
                f"coco/panoptic_{split}2017",
                how_to_get=_COCO,
            )
        )
    for level, split in itertools.product(TOY_LEVELS, ("train", "val")):
        name = toy_name(level)
        how = _TOY if name == "toy" else f"{_TOY} --level {level}"
        specs += [
            DatasetSpec(
                f"{name}_vis_{split}",
                "video_instance",
                "toy_vis",
                f"{name}/{split}.json",
                f"{name}/{split}/JPEGImages",
                evaluator="ovis",
                how_to_get=how,
            ),
            DatasetSpec(
                f"{name}_vps_{split}",
                "video_panoptic",
                "toy_vps",
                f"{name}/vipseg/panoptic_gt_{split}.json",
                f"{name}/vipseg/images",
                f"{name}/vipseg/panomasksRGB",
                evaluator="vps",
                how_to_get=how,
            ),
            DatasetSpec(
                f"{name}_vss_{split}",
                "video_semantic",
                "toy_vps",
                f"{name}/vspw/{split}.txt",
                f"{name}/vspw/data",
                evaluator="vss",
                how_to_get=how,
            ),
        ]
    return specs


for _spec in _published():
    register_dataset(_spec)
