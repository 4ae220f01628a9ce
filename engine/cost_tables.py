"""Tables of `profile`: the model that is meant, and what it costs."""

import torch

from engine.backend import selected_backend
from engine.predict import load_model
from models.from_config import build_model
from util.command_config import ProfileConfig
from util.devices import pick_device, remark_on_precision
from util.kinds_of_work import work_of
from util.profiling import ForwardPass, image_size, profile_model


def cost_tables(options: ProfileConfig) -> str:
    """What a checkpoint's detector, or one of the options with random weights, costs: tables.

    By part, by image size, and by kind of work; then what is known to help.

    Raises:
        UserError: no such device, checkpoint or image size.
    """
    device, sizes = pick_device(options.device), [image_size(text) for text in options.sizes]
    backend = selected_backend(device)
    remark_on_precision(device, options.precision)
    if options.checkpoint:
        model = load_model(options.checkpoint)[0]
    else:
        model = build_model(options.model, options.num_classes, backbone_weights="none")
    model.to(torch.float64 if options.precision == "fp64" else torch.float32)
    if options.compile:
        model.compile_parts()
    costs = profile_model(model, sizes, options.batch_size, options.precision, device, options.repeats)
    measured = next((size for size in costs.sizes if not size.failure), None)
    if measured is None:
        return f"operator {backend} on {costs}"
    size = (measured.height, measured.width)
    call = ForwardPass(model, size, options.batch_size, options.precision, device)
    call()
    work = work_of(call, device, options.precision)
    return f"operator {backend} on {costs}\n\nOne pass at {size[0]}x{size[1]}, by kind of work:\n\n{work}"
