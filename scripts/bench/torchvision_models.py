"""torchvision's detectors on a backbone of this project, which take this project's batches."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, box_convert
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from datasets.batch import Batch
from models.backbone import Backbone
from models.postprocess import Detections

# Maps of the backbone that torchvision's own detectors take: strides 4 to 32, or 8 to 32. More are made of the last.
MAPS = {"faster_rcnn": 4, "retinanet": 3, "fcos": 3}
WIDTH = 256
USUAL_SIZE, USUAL_ANCHORS = 800, (32, 64, 128, 256, 512)  # shorter side that torchvision's anchors are meant for
SCORE = 0.001  # detections below are left out; torchvision's 0.05 costs AP
DETECTIONS = 100  # of an image, as torchvision's Faster R-CNN has by default


class Pyramid(nn.Module):
    """Backbone and feature pyramid network (arXiv 1612.03144).

    Args:
        backbone: its maps are those of the pyramid.
        pooled: whether a further map is pooled from the last, as for Faster R-CNN; else convolutions make two.

    Attributes:
        out_channels: channels of every map, which torchvision asks for.
    """

    def __init__(self, backbone: Backbone, pooled: bool):
        super().__init__()
        self.out_channels = WIDTH
        self.body = backbone
        further = LastLevelMaxPool() if pooled else LastLevelP6P7(WIDTH, WIDTH)
        self.fpn = FeaturePyramidNetwork(backbone.channels, WIDTH, extra_blocks=further)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """`[B, 3, H, W]` -> maps `[B, 256, H/stride, W/stride]` named 0, 1, ..., the further ones last."""
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.body(images))))


class AsItIs(GeneralizedRCNNTransform):
    """Only pads: images come resized and normalised."""

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0.0], image_std=[1.0])

    def normalize(self, image: Tensor) -> Tensor:
        """The image itself."""
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None):
        """The image and its objects themselves."""
        return image, target


class TorchvisionDetector(nn.Module):
    """A detector of torchvision that is called as this project's is.

    Args:
        backbone: with as many feature maps as `MAPS` says.
        num_classes: classes C, without the background.
        kind: `faster_rcnn` (arXiv 1506.01497), `retinanet` (1708.02002) or `fcos` (1904.01355).
        size: shorter side of the images, by which torchvision's anchors are scaled. FCOS has none to scale.
        rois: regions of an image that the second stage of Faster R-CNN is trained on.
        proposals: regions of an image that it looks at in evaluation.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, kind: str, size: int, rois: int = 512, proposals: int = 1000
    ):
        super().__init__()
        body, ratios = Pyramid(backbone, pooled=kind == "faster_rcnn"), (0.5, 1.0, 2.0)
        anchors = [a * size / USUAL_SIZE for a in USUAL_ANCHORS]
        if kind == "faster_rcnn":
            self.detector = FasterRCNN(
                body,
                num_classes + 1,
                rpn_anchor_generator=AnchorGenerator(tuple((round(a, 1),) for a in anchors), (ratios,) * len(anchors)),
                rpn_post_nms_top_n_test=proposals,
                box_batch_size_per_image=rois,
                box_score_thresh=SCORE,
            )
        elif kind == "retinanet":
            octaves = tuple(tuple(round(a * 2 ** (i / 3), 1) for i in range(3)) for a in anchors)
            generator = AnchorGenerator(octaves, (ratios,) * len(octaves))
            self.detector = RetinaNet(
                body, num_classes + 1, anchor_generator=generator, score_thresh=SCORE, detections_per_img=DETECTIONS
            )
        else:
            self.detector = FCOS(body, num_classes + 1, score_thresh=SCORE, detections_per_img=DETECTIONS)
        self.detector.transform = AsItIs()

    def forward(self, images: Tensor, padding_mask: Tensor) -> list[tuple[dict[str, Tensor], tuple[int, int]]]:
        """Detect.

        Args:
            images: `[B, 3, H, W]`, normalised, zero on padding.
            padding_mask: `[B, H, W]`, True on padding.

        Returns:
            torchvision's detections of each image, in pixels of it as it is here, and its size there.
        """
        sizes = unpadded_sizes(padding_mask)
        return list(zip(self.detector([image[:, :h, :w] for image, (h, w) in zip(images, sizes)]), sizes))

    def losses(self, images: Tensor, loaded: Batch) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            images: `[B, 3, H, W]`, normalised, on the device.
            loaded: the same batch on the host, with its objects.
        """
        sizes = unpadded_sizes(loaded.padding_mask)
        parts = [image[:, :h, :w] for image, (h, w) in zip(images, sizes)]
        return self.detector(parts, targets_of(loaded, sizes, images.device))


def unpadded_sizes(padding_mask: Tensor) -> list[tuple[int, int]]:
    """Height and width of each image without its padding, from `[B, H, W]`."""
    inside = ~padding_mask
    rows, columns = inside[:, :, 0].sum(1).tolist(), inside[:, 0].sum(1).tolist()
    return list(zip(rows, columns))


def targets_of(loaded: Batch, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[dict[str, Tensor]]:
    """Objects as torchvision takes them: xyxy in pixels, none of them empty, and labels from 1 on."""
    targets = []
    for objects, (height, width) in zip(loaded.objects, sizes):
        boxes = box_convert(objects.boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        target = {"boxes": boxes[kept], "labels": objects.labels[kept] + 1}
        targets.append({k: v.to(device, non_blocking=True) for k, v in target.items()})
    return targets


def pick(
    found: Sequence[tuple[dict[str, Tensor], tuple[int, int]]], sizes: Sequence[tuple[int, int]], top_k: int = 100
) -> list[Detections]:
    """This project's detections of each image: in pixels of its file, labels from 0 on, on the CPU.

    Args:
        found: what the detector returns.
        sizes: (height, width) of each file.
        top_k: detections to keep, at most the 100 that torchvision returns.
    """
    detections = []
    for (of_image, (height, width)), (full_height, full_width) in zip(found, sizes):
        x, y = full_width / width, full_height / height
        boxes = of_image["boxes"].float().cpu()[:top_k] * torch.tensor([x, y, x, y])
        scores, labels = of_image["scores"].float().cpu()[:top_k], of_image["labels"].cpu()[:top_k] - 1
        detections.append(Detections(boxes, scores, labels))
    return detections
