"""Configuration keys of Mask2Former: each once, with default, unit and meaning.

The names and defaults are the published ones. Keys of DeepLab (``add_deeplab_config`` of
``detectron2.projects.deeplab``) are shared and come from there: call that function first.
"""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["add_maskformer2_config"]


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add the keys of Mask2Former to detectron2's defaults, in place.

    Args:
        cfg: the result of ``detectron2.config.get_cfg()``; keys that are there already get these defaults.
    """
    _add_input(cfg)
    _add_solver(cfg)
    _add_segmenter(cfg)
    _add_pixel_decoder(cfg)
    _add_swin(cfg)


def _add_input(cfg: CfgNode) -> None:
    # Name of the data set mapper, e.g. coco_instance_lsj, coco_panoptic_lsj, mask_former_semantic.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Photometric distortion (brightness, contrast, saturation, hue) as in SSD.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Largest share of a crop's pixels that one class may take; 1 switches the check off.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Training images are padded to at least this many pixels per side; -1: no padding in the mapper.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Large-scale jitter: side of the square output in pixels, and the range of the random scale.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0


def _add_solver(cfg: CfgNode) -> None:
    # Optimiser: ADAMW or SGD.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Weight decay of embedding tables.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # The backbone's learning rate relative to BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1


def _add_segmenter(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_FORMER = CfgNode()
    # Losses. Deep supervision: every decoder layer has the losses of the last one.
    cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = True
    # Weight of the class "no object" inside the class loss.
    cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT = 0.1
    # Weights of the class, dice and mask (sigmoid cross entropy) losses; also of the matching costs.
    cfg.MODEL.MASK_FORMER.CLASS_WEIGHT = 1.0
    cfg.MODEL.MASK_FORMER.DICE_WEIGHT = 1.0
    cfg.MODEL.MASK_FORMER.MASK_WEIGHT = 20.0
    # Points per mask at which matching and mask losses look.
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 12544
    # Mask losses draw this many times the points and keep IMPORTANCE_SAMPLE_RATIO (of the points kept)
    # where the prediction is least certain; the others are drawn anew.
    cfg.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 3.0
    cfg.MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO = 0.75

    # Transformer decoder: attention heads, channels of hidden feed-forward layers, dropout probability.
    cfg.MODEL.MASK_FORMER.NHEADS = 8
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.1
    cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD = 2048
    # Encoder layers in front of the decoder; not used here, the pixel decoder has its own encoder.
    cfg.MODEL.MASK_FORMER.ENC_LAYERS = 0
    # Number of predictions, one before the first layer included: the decoder has DEC_LAYERS - 1 layers.
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 6
    # Layer norm before (True) or after (False) each block.
    cfg.MODEL.MASK_FORMER.PRE_NORM = False
    # Channels of queries; number of queries.
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 256
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 100
    # What the decoder attends to: "multi_scale_pixel_decoder" is what our decoder needs.
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res5"
    # A 1 x 1 convolution in front of the decoder also where channels agree already.
    cfg.MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ = False
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # Inputs are padded to a multiple of this many pixels.
    cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = 32

    # Image inference: which results to make.
    cfg.MODEL.MASK_FORMER.TEST = CfgNode()
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = True
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    # Panoptic: lowest class probability of a query; lowest share of a mask that must stay visible.
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = 0.0
    cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.0
    # Resize mask logits to the output size before (True) or after (False) semantic inference.
    cfg.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False


def _add_pixel_decoder(cfg: CfgNode) -> None:
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "BasePixelDecoder"
    # Channels of the mask features.
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 256
    # Layers of the deformable encoder, the features it reads, its heads, sampling points and hidden channels
    # (the last key is ours: the published models have the default).
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 0
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024


def _add_swin(cfg: CfgNode) -> None:
    cfg.MODEL.SWIN = CfgNode()
    # Side of the images in pre-training (pixels); only the size of the absolute position table depends on it.
    cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 224
    # Side of a patch (pixels), channels of the first stage, blocks and heads per stage, window side
    # (patches).
    cfg.MODEL.SWIN.PATCH_SIZE = 4
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Hidden channels of the feed-forward layers relative to their input.
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    cfg.MODEL.SWIN.QKV_BIAS = True
    # Scale of the attention scores; None: one over the square root of a head's channels.
    cfg.MODEL.SWIN.QK_SCALE = None
    # Probabilities of dropout (features, attention weights) and of skipping a block (at the deepest block).
    cfg.MODEL.SWIN.DROP_RATE = 0.0
    cfg.MODEL.SWIN.ATTN_DROP_RATE = 0.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.3
    # Absolute position table added to the patches; layer norm after the patch embedding.
    cfg.MODEL.SWIN.APE = False
    cfg.MODEL.SWIN.PATCH_NORM = True
    cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Recompute activations in the backward pass: less memory, more time.
    cfg.MODEL.SWIN.USE_CHECKPOINT = False
