"""Loaders: joint training, reproducibility, and the early check of the configuration."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

import dvis
from dvis.data import MissingDataError, build_test_loader, build_train_loader, check_datasets, get_spec
from dvis.data.mapper import clip_mapper_from_config


def config(*overrides: Any) -> CfgNode:
    base = [
        "DATASETS.TRAIN", ("toy_vis_train",), "DATASETS.TEST", ("toy_vis_val",),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6,
        "INPUT.MIN_SIZE_TRAIN", (32, 48), "INPUT.SAMPLING_FRAME_NUM", 2, "SOLVER.IMS_PER_BATCH", 2,
        "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", 32, "INPUT.MAX_SIZE_TEST", 100,
    ]  # fmt: skip
    return dvis.load_config(overrides=[*base, *overrides])


def batches(cfg: CfgNode, count: int, start_iter: int = 0) -> list[list[dict[str, Any]]]:
    return list(itertools.islice(build_train_loader(cfg, start_iter), count))


def content(batch: list[dict[str, Any]]) -> list[tuple]:
    return [
        (clip["video_id"], clip["frame_indices"], torch.stack(clip["image"]).numpy().tobytes())
        for clip in batch
    ]


def test_training_batches(toy_data: Path) -> None:
    for batch in batches(config(), 3):
        assert len(batch) == 2
        for clip in batch:
            assert len(clip["image"]) == len(clip["instances"]) == 2
            for image, instances in zip(clip["image"], clip["instances"], strict=True):
                assert image.shape[1:] == instances.image_size


def test_run_depends_on_seed_only_and_can_be_continued(toy_data: Path) -> None:
    whole = [content(batch) for batch in batches(config(), 6)]
    assert [content(batch) for batch in batches(config("DATALOADER.NUM_WORKERS", 2), 6)] == whole
    assert [content(batch) for batch in batches(config(), 4, start_iter=2)] == whole[2:]
    assert [content(batch) for batch in batches(config("SEED", 1), 6)] != whole
    assert len(batches(config("SEED", -1), 1)) == 1


def write_coco(root: Path) -> None:
    """Two images of COCO: a person and a toaster, which OVIS does not have; and one with only a toaster."""
    folder = root / "coco" / "train2017"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for image, categories in ((1, (1, 80)), (2, (80,)), (3, (1,))):
        Image.fromarray(np.full((40, 50, 3), 80 * image, np.uint8)).save(folder / f"{image}.jpg")
        images.append({"id": image, "file_name": f"{image}.jpg", "height": 40, "width": 50})
        for category in categories:
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": 0,
                    "segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]],
                }
            )  # fmt: skip
    path = root / "coco" / "annotations" / "coco2ovis_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def write_ovis(root: Path) -> None:
    folder = root / "ovis" / "train" / "v"
    folder.mkdir(parents=True)
    names = []
    for t in range(3):
        Image.fromarray(np.full((40, 50, 3), 20 + t, np.uint8)).save(folder / f"{t}.jpg")
        names.append(f"v/{t}.jpg")
    mask = {"size": [40, 50], "counts": [200, 400, 1400]}
    path = root / "ovis" / "annotations" / "annotations_train.json"
    path.parent.mkdir()
    annotation = {
        "id": 1,
        "video_id": 1,
        "category_id": 2,
        "iscrowd": 0,
        "segmentations": [mask, None, mask],
        "bboxes": [[1, 1, 1, 1], None, [1, 1, 1, 1]],
    }
    video = {"id": 1, "height": 40, "width": 50, "length": 3, "file_names": names}
    path.write_text(json.dumps({"videos": [video], "annotations": [annotation]}))


JOINT = [
    "DATASETS.TRAIN", ("coco2ovis_train", "ovis_train"), "DATASETS.DATASET_RATIO", [1.0, 1.0],
    "DATASETS.DATASET_TYPE", ["image_instance", "video_instance"], "DATASETS.DATASET_NEED_MAP", [True, False],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 25, "INPUT.PSEUDO.MIN_SIZE_TRAIN", [40],
]  # fmt: skip


def test_joint_training_of_images_and_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_coco(tmp_path)
    write_ovis(tmp_path)
    cfg = config(*JOINT)
    clips = [clip for batch in batches(cfg, 20) for clip in batch]
    from_images = [clip for clip in clips if "coco" in clip["file_names"][0]]
    assert 10 < len(from_images) < 30
    # Image 2 has nothing that OVIS knows and is left out.
    assert {clip["video_id"] for clip in from_images} == {1, 3}
    for clip in clips:
        labels = {label for frame in clip["instances"] for label in frame.gt_classes.tolist()} - {-1}
        assert labels <= ({0} if "coco" in clip["file_names"][0] else {1})
        assert len(clip["image"]) == 2


def test_panoptic_and_semantic_training(toy_data: Path) -> None:
    for name, kind in (("toy_vps_train", "video_panoptic"), ("toy_vss_train", "video_semantic")):
        cfg = config(
            "DATASETS.TRAIN", (name,), "DATASETS.DATASET_TYPE", [kind], "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11
        )
        check_datasets(cfg)
        (batch,) = batches(cfg, 1)
        assert all(len(clip["instances"][0]) > 0 for clip in batch)


def test_empty_videos_are_left_out_if_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_coco(tmp_path)
    write_ovis(tmp_path)
    cfg = config(*JOINT, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    clips = [clip for batch in batches(cfg, 20) for clip in batch]
    empty = [clip for clip in clips if clip["video_id"] == 2]
    assert empty
    assert all(len(frame) == 0 for clip in empty for frame in clip["instances"])


def test_videos_without_ground_truth_cannot_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_ovis(tmp_path)
    path = tmp_path / "ovis/annotations/annotations_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": None}))
    with pytest.raises(ValueError, match="ovis_train has no ground truth"):
        build_train_loader(config("DATASETS.TRAIN", ("ovis_train",)))


def test_test_loader_gives_every_video_once(toy_data: Path) -> None:
    loader = build_test_loader(config(), "toy_vis_val")
    videos = [video for batch in loader for video in batch]
    assert [video["video_id"] for video in videos] == [1, 2]
    assert all(video["image"][0].shape == (3, 32, 45) for video in videos)
    assert [batch[0]["video_id"] for batch in loader] == [1, 2]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["DATASETS.TRAIN", ("toy_vis_trian",)], KeyError, "did you mean 'toy_vis_train'"),
        (["DATASETS.TEST", ("nothing_like_it",)], KeyError, "known are"),
        (["DATASETS.TRAIN", ()], ValueError, "TRAIN is empty"),
        (["DATASETS.DATASET_RATIO", [1.0, 2.0]], ValueError, "DATASET_RATIO has 2 entries for 1"),
        (["DATASETS.DATASET_TYPE", ["image_instance"]], ValueError, "says image_instance for toy_vis_train"),
        (
            ["DATASETS.DATASET_TYPE_TEST", ["video_panoptic"]],
            ValueError,
            "DATASET_TYPE_TEST says video_panoptic for toy_vis_val, which is video_instance",
        ),
        (
            ["DATASETS.DATASET_TYPE_TEST", ["video_instance"] * 3],
            ValueError,
            "DATASET_TYPE_TEST has 3 entries for 1 data sets in DATASETS.TEST: toy_vis_val",
        ),
        (
            ["DATASETS.TEST", ("toy_vps_val",), "DATASETS.DATASET_TYPE_TEST", ["video_panoptic"]],
            ValueError,
            "TASK is 'vis', but toy_vps_val is evaluated on results of 'vps'",
        ),
        (
            ["DATASETS.TEST", ("coco2ovis_val",), "DATASETS.DATASET_TYPE_TEST", ["image_instance"]],
            ValueError,
            "there is no evaluation of coco2ovis_val",
        ),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 80], ValueError, "NUM_CLASSES is 80, but toy_vis_train has 6"),
    ],
)
def test_configuration_is_checked_early(
    toy_data: Path, overrides: list[Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        check_datasets(config(*overrides))


def test_missing_data_is_found_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_root: Path) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_root))
    check_datasets(config())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(MissingDataError, match="generate_toy"):
        check_datasets(config())
    with pytest.raises(MissingDataError, match="instances_val2017"):
        check_datasets(config("DATASETS.TEST", ("coco_2017_val",)), training=False)
    with pytest.raises(ValueError, match="coco_2017_train cannot be trained on here"):
        check_datasets(config("DATASETS.TRAIN", ("coco_2017_train",)))


def test_sampler_of_detectron2_is_not_replaced_silently(toy_data: Path) -> None:
    with pytest.raises(ValueError, match="SAMPLER_TRAIN"):
        build_train_loader(config("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"))


CONFIGS = Path(__file__).parents[3] / "configs"
LEAVES = sorted(
    path for path in CONFIGS.rglob("*.yaml") if "_base_" not in path.parts and "Base-" not in path.name
)


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_fits_its_data_sets(path: Path) -> None:
    cfg = dvis.load_config(path)
    if "coco" in path.relative_to(CONFIGS).parts:
        pytest.skip("images are detectron2's own data sets")
    specs = [get_spec(name) for name in cfg.DATASETS.TRAIN]
    assert [spec.kind for spec in specs] == list(cfg.DATASETS.DATASET_TYPE)
    assert [get_spec(name).kind for name in cfg.DATASETS.TEST] == list(cfg.DATASETS.DATASET_TYPE_TEST)
    assert len(specs[-1].class_names()) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for spec, need_map in zip(specs, cfg.DATASETS.DATASET_NEED_MAP, strict=True):
        assert need_map == (spec.categories != specs[-1].categories)
        clip_mapper_from_config(cfg, spec.kind, spec.reader(), spec.class_map_to(specs[-1]))
