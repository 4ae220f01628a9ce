"""The options of the commands beside `train`, each with its default and what it means."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from util.config import Config, DataPaths, EvalDataConfig, ModelConfig, Natural, Positive, Share, TTAConfig
from util.ranges import Range


@dataclass
class EvalConfig:
    """Scores a checkpoint, or saved detections, on the validation images."""

    checkpoint: str | None = None
    """checkpoint: ours, a .pth of another project (docs/evaluate.md lists them), or a transformers directory"""
    detections: str | None = None
    """COCO result JSON to score instead of running a model"""
    weights: Literal["auto", "model", "ema"] = "auto"
    """weights of the checkpoint: auto takes the moving average if there is one"""
    output: str = "runs/eval"
    """folder for results.json, detections.json and the analysis"""
    batch_size: Positive = 4
    """images at once"""
    padding: Literal["none", "batch"] = "none"
    """none: only images of one size go together, so that nothing depends on the batch; batch: neighbours by id, padded
    to the largest of them, as the original's published figures were computed, in pairs (--batch_size 2)"""
    top_k: Positive | None = None
    """detections kept for each image; null takes 100, or 300 by LVIS's protocol"""
    scorer: Literal["own", "pycocotools", "faster-coco-eval"] = "own"
    """what matches and counts: ours, or a library to compare with; pycocotools gives the same figures more slowly"""
    match: Literal["auto", "names", "ids"] = "auto"
    """which class of the checkpoint is which of the data: by name or by id; auto: by name, but where the checkpoint
    keeps none by id, unless the data are COCO's"""
    analyse: bool = False
    """also analyse the errors: report.html, analysis.json and worst/ in the output folder"""
    threshold: Share = 0.5
    """analysis: smallest score in the confusion matrix, and of a confident mistake"""
    worst: Natural = 8
    """analysis: number of images to draw, the worst first"""
    device: str = "auto"
    """auto takes a GPU if there is one; else cpu, cuda, cuda:1, mps"""
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    tta: TTAConfig = field(default_factory=TTAConfig)


@dataclass
class PredictConfig:
    """Draws and lists what a checkpoint sees on pictures and videos."""

    checkpoint: str | None = None
    """checkpoint: ours, a .pth of another project (docs/evaluate.md lists them), or a transformers directory"""
    input: str | None = None
    """picture, video (which needs PyAV: pip install av), folder of them, or quoted pattern such as "photos/*.jpg" """
    weights: Literal["auto", "model", "ema"] = "auto"
    """weights of the checkpoint: auto takes the moving average if there is one"""
    output: str = "runs/predict"
    """folder for the drawn pictures and predictions.json; of a video, NAME.mp4 and NAME.jsonl with a line a frame"""
    threshold: Share = 0.5
    """smallest score that is drawn and listed"""
    top_k: Positive = 100
    """most detections for each picture"""
    batch_size: Positive = 4
    """frames of a video that go through the model together; pictures go one by one"""
    save_txt: bool = False
    """also write YOLO text, labels/NAME.txt for each drawn picture (class x y width height) and labels/classes.txt"""
    save_conf: bool = False
    """the same with the score behind each box"""
    save_coco: bool = False
    """also write coco_results.json, and coco_images.json with the images and classes that its ids are of"""
    classes: str | None = None
    """annotation file that names the classes by their ids, for a checkpoint that keeps no names"""
    size: Positive | None = None
    """shorter side to resize to; null takes the checkpoint's"""
    device: str = "auto"
    """auto takes a GPU if there is one; else cpu, cuda, cuda:1, mps"""
    tta: TTAConfig = field(default_factory=TTAConfig)


@dataclass
class VisualizeConfig:
    """Draws where a detector looks on pictures, how its boxes are refined, and which pixels matter."""

    checkpoint: str | None = None
    """checkpoint: ours, the original repository's .pth, or a transformers directory; null takes an untrained model"""
    input: str | None = None
    """picture, folder of pictures, or quoted pattern such as "photos/*.jpg" """
    weights: Literal["auto", "model", "ema"] = "auto"
    """weights of the checkpoint: auto takes the moving average if there is one"""
    output: str = "runs/visualize"
    """folder for MAP.png, sampling.npz and sampling.json; several pictures get a folder each in it"""
    maps: list[str] = field(default_factory=lambda: ["decoder", "heads", "boxes", "encoder", "locations", "gradient"])
    """what to draw: sampling points of the queries (decoder), of one by head and level (heads), boxes layer by layer
    (boxes), points of a pixel's tokens (encoder), attention traced to the image (locations), effective receptive
    field (gradient), where a ResNet's unit at a pixel reads (backbone), and, in hundreds of forward passes, the
    smallest region that is enough (saliency)"""
    explore: bool = False
    """also write explorer.html, a page that shows the sampling points of any box or place that is clicked"""
    compare: str | None = None
    """a second checkpoint, of any kind that checkpoint takes, shown beside the first in explorer.html"""
    threshold: Share = 0.5
    """smallest score of a query to be drawn"""
    top_k: Positive = 3
    """most queries to draw, the best ones"""
    classes: str | None = None
    """annotation file that names the classes by their ids, for a checkpoint that keeps no names"""
    queries: list[int] | None = None
    """queries to draw instead, from 0"""
    layers: list[int] | None = None
    """decoder layers to draw, from 0; null for all"""
    pixel: list[int] | None = None
    """x and y in the picture for the points of encoder and backbone; null takes the centre of the first query's box"""
    bound: Share = 0.1
    """saliency: largest relative change of the score, and largest loss of the box's IoU"""
    cells: Annotated[int, Range(1, 512)] = 16
    """saliency: cells along the longer side of the picture"""
    size: Positive | None = None
    """shorter side to resize to; null takes the checkpoint's"""
    num_classes: Positive = 91
    """classes C of the heads, if no checkpoint gives them"""
    device: str = "auto"
    """auto takes a GPU if there is one; else cpu, cuda, cuda:1, mps"""
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class AblateConfig(Config):
    """Trains every variant of a configuration with several seeds, each in its own folder, and compares them."""

    grid: dict[str, list[Any]] = field(default_factory=dict)
    """options to sweep, all combinations: --grid model.num_points=1,2,4 --grid model.num_heads=4,8, lists in brackets
    (--grid "model.num_points=[4,4,4],[8,4,2]"); in a file a mapping of option to list"""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """named variants, in a file: {name: {option: value, ...}, ...}; combined with the grid, if there is one"""
    seeds: Positive = 1
    """runs of each variant, with train.seed, train.seed + 1, ..."""
    output: str = "runs/ablate"
    """folder of the sweep: table.md, results.csv, plots, and a run's folder for each variant and seed; call again to
    go on"""
    jobs: Positive = 1
    """runs at once, each with a GPU or a share of the CPU cores"""
    repeats: Positive = 10
    """timed forward passes of each variant for its latency; variants take turns"""
    dry_run: bool = False
    """print the plan and end"""
    eval_only: bool = False
    """train nothing: evaluate a checkpoint with fewer sampling points (the strongest are kept), decoder layers,
    proposals, or another image size"""
    checkpoint: str | None = None
    """with eval_only: checkpoint, run's folder, or quoted pattern whose several matches count as seeds"""
    match: Literal["auto", "names", "ids"] = "auto"
    """with eval_only: which class of the checkpoint is which of the data, as in eval"""


@dataclass
class ExportConfig:
    """Writes a checkpoint's detector in a form that runs elsewhere, and compares what is written with it."""

    checkpoint: str | None = None
    """checkpoint: ours, a .pth of another project (docs/evaluate.md lists them), or a transformers directory"""
    format: Literal["onnx", "torch", "transformers"] = "onnx"
    """onnx: model.onnx for ONNX Runtime and others; torch: model.pt2, a program of torch.export; transformers: a folder
    that AutoModelForObjectDetection and pipeline load"""
    output: str = "runs/export"
    """folder for what is written"""
    weights: Literal["auto", "model", "ema"] = "auto"
    """weights of the checkpoint: auto takes the moving average if there is one"""
    images: str | None = None
    """picture, folder of pictures, or quoted pattern to compare on, the first eight of them; null draws shapes"""
    size: Positive | None = None
    """shorter side of the images; null takes the checkpoint's"""
    fixed: list[str] = field(default_factory=list)
    """image sizes, HEIGHTxWIDTH in pixels, to write a file each for, which takes no others; empty writes one file that
    takes images of any size"""
    operator: Literal["auto", "reference"] = "auto"
    """torch: auto writes a call of the compiled sampling operator where it is built (the file then needs `import ops`
    before it is loaded); reference: PyTorch's own operators alone, as onnx always has"""
    top_k: Positive = 100
    """detections that the file gives for each image"""
    threshold: Share = 0.5
    """smallest score to draw, kept with the file for whoever uses it; the file itself leaves nothing out"""
    classes: str | None = None
    """annotation file that names the classes by their ids, for a checkpoint that keeps no names"""


@dataclass
class ProfileConfig:
    """Counts and measures what a model costs: parameters, operations, latency, memory, by image size."""

    checkpoint: str | None = None
    """take the model of a checkpoint instead of the model section"""
    sizes: list[str] = field(default_factory=lambda: ["480x640", "800x1066", "800x1333"])
    """image sizes, HEIGHTxWIDTH in pixels"""
    batch_size: Positive = 1
    """images at once"""
    num_classes: Positive = 91
    """classes C of the heads, if no checkpoint gives them"""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """as in training"""
    compile: bool = False
    """torch.compile the model first"""
    repeats: Positive = 10
    """timed passes of each size; the median is shown"""
    device: str = "auto"
    """auto takes a GPU if there is one; else cpu, cuda, cuda:1, mps"""
    plan: str | None = None
    """instead, what training on a cluster needs, as nodes=8,gpus=8 (machines, GPUs of each). Further keys, with commas
    between: images, objects, image_kb (without: COCO and Objects365); epochs, batch (images a step, over all GPUs);
    step_ms (of a GPU for its images) or images_per_second (of a GPU); decode_ms (of one core an image; else measured
    here); of a machine cores, network (Gbit/s to others), link (Gbit/s between its GPUs), storage (MB/s)"""
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class CheckDataConfig:
    """Reads a whole dataset and reports classes, counts, sizes and every defect."""

    output: str | None = None
    """JSON file for the whole report"""
    show: Natural = 20
    """defects, and changes, of each kind to print"""
    fix: str | None = None
    """JSON file for a mended copy of the annotations: boxes clipped, doubled and impossible ones removed, ids made
    numbers, areas computed; with two splits a folder, for train.json and val.json; the source is never changed"""
    data: DataPaths = field(default_factory=DataPaths)


@dataclass
class ConvertDataConfig:
    """Writes data of another format as one COCO JSON file, and says what was left out or read as something else."""

    from_: Literal["auto", "voc", "yolo", "coco"] = "auto"
    """format of the input: voc, Pascal VOC XML; yolo, YOLO text; coco, COCO JSON, whose text values become numbers;
    auto tells by what is there, and also takes LVIS (JSON), CrowdHuman (.odgt) and VisDrone (folder of texts)"""
    input: str | None = None
    """voc: folder of XML files, or a list of ImageSets; yolo: folder of labels, or data.yaml; coco: JSON file"""
    images: str | None = None
    """image folder; null takes the one beside the labels. Sizes that are not stated are read there"""
    classes: str | None = None
    """voc, yolo: text with the name of a class on each line, which numbers them; null takes classes.txt or data.yaml
    beside the labels or above, and for voc without one the order of the names"""
    split: str = "train"
    """yolo: key of data.yaml that names the image folder, if images does not"""
    voc_corners: Literal["pixels", "edges"] = "pixels"
    """voc: what the numbers of a box mean: its corner pixels, counted from 1, as the format says; or edges, counted
    from 0, as LabelImg and others write them (docs/data.md)"""
    output: str | None = None
    """JSON file to write"""
