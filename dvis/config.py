"""Configuration keys of the video models, each once with default, unit and meaning; how a file is loaded.

Names and defaults that DVIS published are kept, so a published YAML loads as it is. ``(ours)`` marks new
keys.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from dvis.unread_keys import has_no_effect, is_unread
from mask2former.config import add_maskformer2_config

__all__ = ["add_dvis_config", "flatten", "load_config"]


def add_dvis_config(cfg: CfgNode) -> None:
    """Add the keys of the video models, in place, after those of DeepLab and Mask2Former.

    Args:
        cfg: detectron2's defaults plus ``add_deeplab_config`` and ``add_maskformer2_config``.
    """
    _add_data(cfg)
    _add_input(cfg)
    _add_tracker(cfg)
    _add_refiner(cfg)
    _add_frozen(cfg)
    _add_inference(cfg)
    # (ours) What happens when a matching cost or a loss is not a finite number: "stop" with the names of the
    # video and the tensor, or "skip" the batch with a warning that has them.
    cfg.SOLVER.NON_FINITE = "stop"
    # (ours) With "skip": so many batches, per process and start of the program, then training stops. All are
    # written to OUTPUT_DIR/non_finite.jsonl.
    cfg.SOLVER.MAX_NON_FINITE = 10
    # (ours) Number of checkpoints that are kept, the newest ones; 0 for all. model_final.pth stays anyway.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
    # (ours) Each process passes its share of a batch through the model in so many parts, whose gradients are
    # added up before the optimiser steps. Less memory; IMS_PER_BATCH is the whole batch as ever.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # (ours) True: the losses of each clip are normalised by its own objects, and averaged over the clips of
    # the batch, so that they do not depend on how a batch is divided among processes and accumulation steps.
    # False, as published: by the objects of all clips that the processes work on at a time.
    cfg.SOLVER.LOSS_PER_CLIP = False
    # (ours) Evaluation: go on after the videos that an interrupted evaluation of the same weights and
    # settings has finished (same OUTPUT_DIR); also pack the results as the benchmark's server takes them.
    cfg.TEST.RESUME = False
    cfg.TEST.ZIP = False
    # (ours) Whether metrics also go to Weights & Biases (pip install wandb), into which project, and what the
    # run is called there ("": a name is made up).
    cfg.WANDB = CfgNode({"ENABLED": False, "PROJECT": "dvis", "NAME": ""})
    # Seed of every random generator; negative: a different one in each run.
    cfg.SEED = 42


def _add_data(cfg: CfgNode) -> None:
    # One entry per training (test) set: how it is read - video_instance, video_panoptic, video_semantic,
    # image_instance, image_panoptic (images become pseudo videos).
    # A data set knows its type, and is evaluated by it; saying another one is an error. A single test type
    # stands for all test sets.
    cfg.DATASETS.DATASET_TYPE = ["video_instance"]
    cfg.DATASETS.DATASET_TYPE_TEST = ["video_instance"]
    # Share of each training set in the mix.
    cfg.DATASETS.DATASET_RATIO = [1.0]
    # Whether a set's categories are mapped to those of the last training set.
    cfg.DATASETS.DATASET_NEED_MAP = [False]
    # (ours) Training clips that may be replaced by others because they cannot be made: number of different
    # faults (missing or broken files, broken annotations, loading processes that died) per process and start
    # of the program. 0: training stops at the first. Every fault is logged.
    cfg.DATALOADER.MAX_FAULTS = 0
    # (ours) The user's own data sets, see datasets/README.md: names to use in TRAIN and TEST, then lists with
    # one entry per name. Paths are absolute, or relative to the folder in DETECTRON2_DATASETS.
    custom = cfg.DATASETS.CUSTOM = CfgNode()
    custom.NAMES = []
    # video_instance, image_instance, video_panoptic, image_panoptic or video_semantic.
    custom.TYPES = []
    # Annotation file: JSON as in YouTube-VIS, COCO, VIPSeg or COCO panoptic, or VSPW's list of videos.
    custom.ANNOTATIONS = []
    # Folder of the images; VSPW: of the videos.
    custom.IMAGES = []
    # Folder of panoptic PNGs, "" for other data; [] if there are none at all.
    custom.MASKS = []
    # JSON file with the categories; "" or [] takes them from the annotation file.
    custom.CATEGORIES = []
    # Whether MODEL.SEM_SEG_HEAD.NUM_CLASSES is set to the number of classes of the last training set, if this
    # is one of NAMES. False: the configured number must be it.
    custom.SET_NUM_CLASSES = True


def _add_input(cfg: CfgNode) -> None:
    # Frames per training clip, and the largest distance (frames) of a sampled frame to the clip's key
    # frame.
    cfg.INPUT.SAMPLING_FRAME_NUM = 2
    cfg.INPUT.SAMPLING_FRAME_RANGE = 20
    # Share of a video's frames, evenly spaced, that are trained on; below 1 only for clips of one frame.
    cfg.INPUT.SAMPLING_FRAME_RATIO = 1.0
    # Whether a clip's frames are shuffled.
    cfg.INPUT.SAMPLING_FRAME_SHUFFLE = False
    # (ours) True samples frames with the published DVIS's slips: with replacement, never the last contiguous
    # clip of a video, and short videos filled up out of order.
    cfg.INPUT.SAMPLING_AS_PUBLISHED = False
    # Whether clips are also played backwards, at random.
    cfg.INPUT.REVERSE_AGU = False
    # Further augmentations of videos: brightness, contrast, rotation, saturation.
    cfg.INPUT.AUGMENTATIONS = []
    # Large-scale jitter of clips: side of the square output (pixels), range of the random scale.
    cfg.INPUT.LSJ_AUG = CfgNode({"ENABLED": False, "IMAGE_SIZE": 1024, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0})
    # (ours) Training: decode JPEG frames at a half, a quarter or an eighth of their size where they are made
    # as small anyway. Faster; pixels differ a little from the published training. Evaluation never does.
    cfg.INPUT.REDUCED_DECODING = False
    # (ours) An object's class is that of the frames where it is visible. True restores the published DVIS,
    # which takes the last frame's: an object that is not visible there is then trained as "no object".
    cfg.INPUT.LABEL_FROM_LAST_FRAME = False

    # Pseudo videos, made from one image by augmenting it once per frame.
    cfg.INPUT.PSEUDO = CfgNode()
    cfg.INPUT.PSEUDO.AUGMENTATIONS = ["rotation"]
    # Lengths of the shorter side (pixels), longest side, and how one is chosen.
    cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768]
    cfg.INPUT.PSEUDO.MAX_SIZE_TRAIN = 768
    cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN_SAMPLING = "choice_by_clip"
    # Random crop, as INPUT.CROP.
    cfg.INPUT.PSEUDO.CROP = CfgNode({"ENABLED": False, "TYPE": "absolute_range", "SIZE": [384, 600]})


def _add_tracker(cfg: CfgNode) -> None:
    cfg.MODEL.TRACKER = CfgNode()
    # Blocks of referring cross attention, self attention and feed-forward.
    cfg.MODEL.TRACKER.DECODER_LAYERS = 6
    # (ours) How a frame's queries are put in the order of the previous frame's: "inverse" indexes with the
    # inverse of the assignment, as the published DVIS (its weights were trained so); "forward" with the
    # assignment itself, as MinVIS and DVIS++.
    cfg.MODEL.TRACKER.MATCHING = "inverse"
    # (ours) What each frame's running output starts from (paper, table 6): "zero", the "previous" frame's
    # output, the frame's "segmenter" queries, or these after being "matched" to the previous frame's.
    cfg.MODEL.TRACKER.INITIAL_VALUE = "matched"
    # (ours) Query of the cross attention (paper, table 7): "referring", the previous frame's output;
    # "standard", the running output itself.
    cfg.MODEL.TRACKER.CROSS_ATTENTION = "referring"
    # (ours) True puts every frame's queries in a random order before they are linked, in training and at
    # inference: what still links objects then is not the segmenter's order of queries.
    cfg.MODEL.TRACKER.SHUFFLE_QUERIES = False
    # (ours) Share of the schedule in which the tracker's objects are assigned by the segmenter's
    # predictions (paper, equation 4) instead of its own.
    cfg.MODEL.TRACKER.GUIDED_FRACTION = 0.5
    # (ours) True restores the published DVIS, where objects that appear in different frames may be
    # assigned to one and the same query.
    cfg.MODEL.TRACKER.SHARED_QUERIES = False


def _add_refiner(cfg: CfgNode) -> None:
    cfg.MODEL.REFINER = CfgNode()
    # Blocks of temporal, object and cross attention.
    cfg.MODEL.REFINER.DECODER_LAYERS = 6
    # (ours) Components (paper, table 8): attention over all frames of an object, convolutions over
    # neighbouring frames, attention among the objects of a frame, attention to the frame's queries,
    # learned weights over time (otherwise the mean) of the query that is classified. A component that is
    # off has no parameters.
    cfg.MODEL.REFINER.TIME_ATTENTION = True
    cfg.MODEL.REFINER.TIME_CONV = True
    cfg.MODEL.REFINER.OBJECT_ATTENTION = True
    cfg.MODEL.REFINER.CROSS_ATTENTION = True
    cfg.MODEL.REFINER.CLASS_WEIGHTING = True
    # (ours) Share of the schedule in which the refiner's objects are assigned by the tracker's predictions
    # (paper, equation 7) instead of its own.
    cfg.MODEL.REFINER.GUIDED_FRACTION = 0.5


def _add_frozen(cfg: CfgNode) -> None:
    """How the frozen segmenter runs while the tracker or the refiner is trained."""
    cfg.MODEL.MASK_FORMER.FROZEN = CfgNode()
    # (ours) Frames of a clip that pass through it together. Fewer need less memory; losses do not depend on
    # it.
    cfg.MODEL.MASK_FORMER.FROZEN.WINDOW_SIZE = 4
    # (ours) Precision of its large products: as MODEL.MASK_FORMER.TEST.PRECISION. With anything but "float32"
    # tracker and refiner learn from slightly other queries than as published.
    cfg.MODEL.MASK_FORMER.FROZEN.PRECISION = "float32"
    # (ours) Memory of each process, in 2**30 bytes, for what it said of frames; one that comes again with the
    # same pixels is not segmented again. Pays where augmentation gives few forms of a frame. 0: nothing is
    # remembered.
    cfg.MODEL.MASK_FORMER.FROZEN.CACHE_GB = 0.0
    # (ours) Folder where it is also kept, for other processes and trainings with the same segmenter; it is
    # never emptied. "": nowhere.
    cfg.MODEL.MASK_FORMER.FROZEN.CACHE_DIR = ""


def _add_inference(cfg: CfgNode) -> None:
    test = cfg.MODEL.MASK_FORMER.TEST
    # What is made of a video: vis (instances), vps (panoptic), vss (semantic).
    test.TASK = "vis"
    # VIS: number of best (query, class) pairs in the result.
    test.MAX_NUM = 20
    # Frames that pass through the segmenter together. More is faster and needs more memory; results do not
    # depend on it, unless the refiner works per window.
    test.WINDOW_SIZE = 3
    # Published switch between windows and the whole video at once. Kept so that published files load;
    # frames always pass in windows, which gives the same results.
    test.WINDOW_INFERENCE = False
    # (ours) What the refiner of the offline model sees: the whole "video" (offline), or each "window" of
    # WINDOW_SIZE frames (semi-online).
    test.REFINE_OVER = "video"
    # (ours) Host memory (GB) for what is kept of a video until its masks are made; beyond it, a temporary
    # file in SPILL_DIR (empty: the system's folder; a folder that is itself in memory saves nothing). Results
    # do not depend on it.
    test.MAX_MEMORY_GB = 0.5
    test.SPILL_DIR = ""
    # (ours) Memory of the GPU (GB) that is used first for the same purpose.
    test.MAX_DEVICE_MEMORY_GB = 1.0
    # (ours) Keep it in half precision: half the memory, and pixels on the borders of masks may change.
    test.HALF_PRECISION_STORE = False
    # (ours) Precision of the segmenter's large products at inference: "float32" (results as published),
    # "bfloat16", or "auto": bfloat16 where the hardware computes in it (NVIDIA since Ampere, CPUs with AMX).
    test.PRECISION = "float32"
    # (ours) Back end of torch.compile ("inductor", ...) through which segmenter and tracker go at inference;
    # "": they are not compiled. The first windows then take minutes.
    test.COMPILE = ""
    # (ours) VIS: what `pred_masks` holds per object - "bitmask" (`T H W` bool tensor) or "rle" (a list
    # with one COCO run-length code per frame), which needs a hundredth of the memory.
    test.MASK_FORMAT = "bitmask"


def load_config(path: str | os.PathLike[str] | None = None, overrides: Sequence[Any] = ()) -> CfgNode:
    """Return the resolved configuration: detectron2's defaults, all project keys, the file, the overrides.

    Args:
        path: a YAML file; ``_BASE_`` in it is one path or a list of paths, relative to the file. None:
            defaults.
        overrides: ``key, value, key, value, ...`` as on the command line; values may be text.

    Raises:
        FileNotFoundError: if the file or one of its bases is missing.
        KeyError: if a key is unknown, or nothing in this project reads it; names the file, the key and the
            nearest valid key. Models of your own that read more of detectron2's keys can set them in what is
            returned.
        ValueError: if a file is not valid YAML, a value has the wrong type, or ``overrides`` are not pairs.
    """
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    add_dvis_config(cfg)
    if path is not None:
        _check_file(Path(path), cfg, ())
        try:
            cfg.merge_from_file(str(path), allow_unsafe=False)
        except (ValueError, AssertionError) as error:
            raise ValueError(f"config {path}: {error}") from error
    _merge_overrides(cfg, list(overrides))
    return cfg


def _check_file(path: Path, cfg: CfgNode, parents: tuple[Path, ...]) -> None:
    """Check that a file and its bases exist, are mappings and hold known keys only."""
    origin = f" (a _BASE_ of {parents[-1]})" if parents else ""
    if not path.is_file():
        raise FileNotFoundError(f"config {path}{origin}: no such file")
    if path.resolve() in parents:
        raise ValueError(f"config {path}{origin}: the files are bases of each other")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # syntax; text, dates and numbers; too deep
        raise ValueError(f"config {path}{origin}: not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"config {path}{origin}: expected `KEY: value` lines, got {type(content).__name__}")
    bases = content.get("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"config {path}{origin}: _BASE_ must be a path or a list of paths, got {bases!r}")
    if content.get("VERSION", 2) != 2:
        # Older files have other names for some keys; detectron2 would guess.
        raise ValueError(f"config {path}{origin}: VERSION must be 2, got {content['VERSION']!r}")
    for base in bases:
        _check_file(path.parent / Path(base).expanduser(), cfg, (*parents, path.resolve()))
    valid = dict(flatten(cfg))
    for key, value in flatten(content):
        if key in valid and has_no_effect(key, value, valid):
            raise KeyError(f"config {path}{origin}: {_no_effect(key, valid)}")
        if key == "_BASE_" or key in valid:
            continue
        if any(name.startswith(f"{key}.") for name in valid):
            if value != {}:
                raise ValueError(f"config {path}{origin}: {key} is a group of keys, got the value {value!r}")
            continue
        raise KeyError(f"config {path}{origin}: unknown key {key}{_suggestion(key, valid)}")


def _merge_overrides(cfg: CfgNode, overrides: list[Any]) -> None:
    if len(overrides) % 2:
        raise ValueError(f"overrides must be pairs of key and value, got {len(overrides)} items: {overrides}")
    valid = dict(flatten(cfg))
    for key, value in zip(overrides[0::2], overrides[1::2], strict=True):
        if key not in valid:
            raise KeyError(f"override: unknown key {key}{_suggestion(str(key), valid)}")
        if has_no_effect(key, value, valid):
            raise KeyError(f"override: {_no_effect(key, valid)}")
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            raise ValueError(f"override {key}={value!r}: {error}") from error


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("A.B.C", value)`` for every value of a tree of mappings."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _no_effect(key: str, valid: Mapping[str, Any]) -> str:
    return f"{key} has no effect, nothing here reads this key of detectron2{_suggestion(key, valid)}"


def _suggestion(key: str, valid: Mapping[str, Any]) -> str:
    """Return ``; did you mean A.B.C?`` with the key nearest to ``key`` that is read, or nothing."""
    names = [name for name in valid if not is_unread(name)]
    same_leaf = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    nearest = difflib.get_close_matches(key, same_leaf or names, n=1, cutoff=0.0 if same_leaf else 0.6)
    return f"; did you mean {nearest[0]}?" if nearest else ""
