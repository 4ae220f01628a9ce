"""The maps of one picture that `main.py visualize` draws, and their numbers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from analysis.looks.backbone_pictures import BackboneRow, backbone_picture
from analysis.looks.box_pictures import boxes_picture
from analysis.looks.canvas import save
from analysis.looks.conv_sampling import STAGES, conv_sampling
from analysis.looks.effective import trace
from analysis.looks.explorer.explore import Seen, write_explorer
from analysis.looks.map_pictures import gradient_picture, locations_picture, saliency_picture
from analysis.looks.receptive_field import box_output, class_output, receptive_field
from analysis.looks.saliency import cells_of, detection_errors, saliency_region
from analysis.looks.sampling import record_sampling
from analysis.looks.sampling_pictures import decoder_picture, describe_query, encoder_picture, heads_picture
from analysis.looks.selection import ChosenQuery, choose_layers, choose_pixel, choose_queries, layer_scores, tokens_at
from engine.predictor import Predictor
from models.deform_backbone import stage_convolutions
from models.detector import DeformableDETR
from util.command_config import VisualizeConfig
from util.errors import UserError
from util.fonts import drawable, legend_of


class Look:
    """A recorded forward pass on one picture, with the queries, layers and tokens to draw.

    Args:
        predictor: the detector.
        picture: the picture, upright, RGB.
        config: what to choose and what to draw.

    Attributes:
        record: the recorded forward pass.
        chosen: the queries to draw, best first unless the user named them.
        layers: the decoder layers to draw.
        point: (x, y) in [0, 1] of the picture, the place whose encoder tokens and backbone unit are drawn.
        tokens: the token of each level at this point.
        arrays: the numbers that were drawn, by name: `decoder.I.*` for all queries in decoder layer I, `encoder.I.*`
            for `tokens`, `MAP.Q.*` for each map and query Q, and `backbone.*`.
        summary: the choices and results, for JSON.
        names: class names by label as they can be drawn; `true_names` are what they are.
        remarks: sentences for the user.

    Raises:
        UserError: there is no such query, layer or pixel.
        TypeError: the predictor's model is not a `DeformableDETR`, as with test-time views.
    """

    def __init__(self, predictor: Predictor, picture: Image.Image, config: VisualizeConfig):
        self.model, self.picture, self.config = _detector(predictor), picture, config
        self.true_names, self.names = predictor.names, drawable(predictor.names)
        batch = predictor.batch_of([picture])
        self.images, self.padding_mask = batch.images, batch.padding_mask
        self.record = record_sampling(self.model, self.images, self.padding_mask)
        predictions = self.record.predictions
        self.chosen = choose_queries(predictions, config.threshold, config.top_k, config.queries)
        self.layers = choose_layers(len(self.record.decoder), config.layers)
        self.point = choose_pixel(config.pixel, predictions.boxes[-1, 0, self.chosen[0].query], picture.size)
        self.tokens = tokens_at(self.point, self.record.spatial_shapes, self.record.valid_ratios[0])
        self.remarks: list[str] = []
        if config.queries is None and self.chosen[0].score < config.threshold:
            self.remarks.append(f"no query reaches the threshold {config.threshold:g}; the best are drawn instead")
        if legend := legend_of({q.label: self.true_names[q.label] for q in self.chosen if q.label in self.true_names}):
            self.remarks.append(legend)
        self.arrays = self._sampled()
        self.summary: dict = {
            "width": picture.width,
            "height": picture.height,
            "layers": self.layers,
            "point": self.point,
            "queries": [self._describe(q) for q in self.chosen],
        }

    def draw(self, folder: Path) -> list[str]:
        """Draw the configured maps into an existing folder, save the numbers, and return the files' names."""
        written = []
        for name in dict.fromkeys(self.config.maps):
            figure = MAPS[name](self)
            if figure is not None:
                save(figure, folder / f"{name}.png")
                written.append(f"{name}.png")
        # numpy's stub takes every unpacked name for `allow_pickle`.
        np.savez_compressed(folder / "sampling.npz", **self.arrays)  # type: ignore[arg-type]
        (folder / "sampling.json").write_text(json.dumps(self.summary, indent=1))
        return [*written, "sampling.npz", "sampling.json"]

    def explore(self, file: Path, name: str, titles: Sequence[str], other: Predictor | None) -> None:
        """Write the page on which one can ask about any place, beside another detector's answers if there is one.

        Args:
            file: where to write.
            name: of the picture's file.
            titles: what this detector and the other are called.
            other: the other detector.
        """
        seen = [Seen(titles[0], self.record, self.true_names)]
        if other is not None:
            batch = other.batch_of([self.picture])
            model = _detector(other)
            seen.append(Seen(titles[1], record_sampling(model, batch.images, batch.padding_mask), other.names))
        shown = self.config.threshold, self.chosen[0].query
        self.remarks.append(write_explorer(file, self.picture, name, seen, self.point, *shown))

    def _decoder(self) -> Figure:
        return decoder_picture(self.picture, self.record, self.chosen, self.layers, self.names)

    def _heads(self) -> Figure:
        return heads_picture(self.picture, self.record, self.chosen[0], self.layers[-1], self.names)

    def _boxes(self) -> Figure:
        return boxes_picture(self.picture, self.record, self.chosen, self.names)

    def _encoder(self) -> Figure | None:
        if not self.record.encoder:
            self.remarks.append("encoder.png is left out: this model has no encoder layers that sample")
            return None
        return encoder_picture(self.picture, self.record, self.tokens, self.point)

    def _locations(self) -> Figure:
        if not self.record.encoder and len(self.model.transformer.encoder):
            self.remarks.append("locations.png ends at the encoder's output, for this encoder's layers do not sample")
        traced = [trace(self.record, q.query) for q in self.chosen]
        for entry, query, found in zip(self.summary["queries"], self.chosen, traced):
            entry["attention_on_the_image"] = found.kept
            for name in ("points", "mass", "levels", "token_mass"):
                self.arrays[f"locations.{query.query}.{name}"] = getattr(found, name).numpy()
        return locations_picture(self.picture, self.record, list(zip(self.chosen, traced)), self.names)

    def _gradient(self) -> Figure:
        fields = []
        for query in self.chosen:
            outputs = {"class logit": class_output(query.query, query.label), "box": box_output(query.query)}
            found = {n: receptive_field(self.model, self.images, self.padding_mask, o)[0] for n, o in outputs.items()}
            fields.append((query, found))
            for name, field in found.items():
                self.arrays[f"gradient.{query.query}.{name.replace(' ', '_')}"] = _array(field)
        return gradient_picture(self.picture, self.record, fields, self.names)

    def _saliency(self) -> Figure:
        any_query, cells = self.model.queries.ranked, self.config.cells
        regions = []
        for entry, query in zip(self.summary["queries"], self.chosen):
            errors = detection_errors(self.model, self.images, self.padding_mask, query.query, query.label, any_query)
            region = saliency_region(errors, cells_of(tuple(self.images.shape[-2:]), cells), self.config.bound)
            regions.append((query, region))
            entry["saliency"] = {"share": region.share, "error": region.error, "masks_tried": region.passes}
            self.arrays[f"saliency.{query.query}.keep"] = region.keep.numpy()
        return saliency_picture(self.picture, self.record, regions, self.config.bound, self.names)

    def _backbone(self) -> Figure | None:
        if not stage_convolutions(self.model.backbone.body, STAGES):
            self.remarks.append(
                "backbone.png is left out: only the convolutions of a ResNet or ResNeXt can be followed"
            )
            return None
        found = conv_sampling(self.model.backbone, self.images, self.point)
        if not len(found.strength):
            self.remarks.append(
                "backbone.png has no locations: nothing that 3x3 convolutions read moves the unit, as in an untrained "
                "ResNet, whose blocks start silent"
            )
        for name in ("points", "strength", "stages", "layers"):
            self.arrays[f"backbone.{name}"] = getattr(found, name).numpy()
        self.arrays["backbone.unit"] = np.array(found.unit)
        self.summary["backbone_layers"] = found.names
        box = self.record.predictions.boxes[-1, 0, self.chosen[0].query].tolist()
        x, y = (int(v * side) for v, side in zip(self.point, self.picture.size))
        label = f"unit at pixel ({x}, {y})\nbox of {describe_query(self.chosen[0], self.names)}"
        return backbone_picture(self.picture, [BackboneRow(label, found, box)])

    def _sampled(self) -> dict[str, np.ndarray]:
        arrays = {"logits": _array(self.record.predictions.logits[:, 0]), "tokens": np.array(self.tokens)}
        arrays["boxes_cxcywh"] = _array(self.record.predictions.boxes[:, 0])
        for kind, samplings in (("decoder", self.record.decoder), ("encoder", self.record.encoder)):
            picked = self.tokens if kind == "encoder" else slice(None)
            for i, sampling in enumerate(samplings):
                for name in ("locations", "weights", "references"):
                    arrays[f"{kind}.{i}.{name}"] = _array(getattr(sampling, name)[0, picked])
                arrays[f"{kind}.{i}.levels"] = _array(sampling.levels)
        return arrays

    def _describe(self, chosen: ChosenQuery) -> dict:
        scale = torch.tensor(self.picture.size * 2)
        boxes = self.record.predictions.boxes[:, 0, chosen.query].float().cpu()
        return {
            "query": chosen.query,
            "label": chosen.label,
            "name": self.true_names.get(chosen.label, str(chosen.label)),
            "scores_by_layer": layer_scores(self.record.predictions, chosen),
            "boxes_xyxy_by_layer": (box_convert(boxes, "cxcywh", "xyxy") * scale).tolist(),
        }


# The maps that `--maps` can name; each gives a figure, or None where the model has nothing to show.
MAPS: dict[str, Callable[[Look], Figure | None]] = {
    "decoder": Look._decoder,
    "heads": Look._heads,
    "boxes": Look._boxes,
    "encoder": Look._encoder,
    "locations": Look._locations,
    "gradient": Look._gradient,
    "saliency": Look._saliency,
    "backbone": Look._backbone,
}


def check_maps(maps: list[str]) -> None:
    """Refuse unknown maps, before a model is loaded.

    Raises:
        UserError: a map is unknown, or the list is empty; the message names the known maps.
    """
    unknown = [name for name in maps if name not in MAPS]
    if unknown or not maps:
        raise UserError(f"maps: there is no {', '.join(unknown) or 'map to draw'}; there are {', '.join(MAPS)}")


def _detector(predictor: Predictor) -> DeformableDETR:
    if not isinstance(predictor.model, DeformableDETR):
        raise TypeError(f"only a DeformableDETR can be looked into, not a {type(predictor.model).__name__}")
    return predictor.model


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
