"""A plan as text: what is needed, what holds it up, and where every number is from."""

from engine.plan.arithmetic import Plan
from engine.plan.figures import TRAINING_CORES, DataSet, Figure
from engine.plan.measure import Measured
from engine.plan.request import PlanRequest
from util.tables import table

MB, GB, GIB = 1e6, 1e9, 2**30
HELP = {
    "GPUs": "GPUs: more of them, bf16 where it is not, or a smaller model; the loaders keep up",
    "network": "network: faster cards between the machines, or larger batches, which need fewer steps",
    "decoding": "decoding: more cores or workers a machine, or torchvision's JPEG decoder",
    "storage": "storage: copy the images to a local SSD, or read shards in sequence (docs/scaling.md)",
}
LEFT_OUT = (
    "Not counted: start-up, evaluation, checkpoints (written beside the steps), failures, and what the backward pass "
    "hides of the all-reduce."
)


def plan_for(data: DataSet, request: PlanRequest, measured: Measured) -> Plan:
    """The arithmetic of one data set."""
    return Plan(
        nodes=request.nodes,
        gpus=request.gpus,
        images=int(data.images.value),
        epochs=int(request.epochs.value),
        batch=int(request.batch.value),
        gpu_seconds=request.gpu_seconds.value,
        decode_seconds=measured.decode_seconds.value,
        loader_cores=request.cores.value - request.gpus * TRAINING_CORES.value,
        image_bytes=data.image_bytes.value,
        storage=request.storage.value,
        gradient_bytes=measured.gradient_bytes.value,
        network=request.network.value,
        link=request.link.value,
    )


def report(request: PlanRequest, measured: Measured) -> str:
    """Tables of what each data set needs, and of the numbers that they are computed from."""
    plans = [plan_for(data, request, measured) for data in request.data]
    columns = [_needs(plan, data, measured) for plan, data in zip(plans, request.data)]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    held = [f"{data.name} is held up by {HELP[plan.bottleneck]}." for plan, data in zip(plans, request.data)]
    cluster = f"{_count(request.nodes, 'machine')} of {_count(request.gpus, 'GPU')}"
    return "\n".join(
        [
            f"A training on {cluster}, {request.epochs.value:.0f} epochs, {request.batch.value:.0f} images a step",
            "",
            table(["", *(data.name for data in request.data)], rows),
            "",
            *held,
            LEFT_OUT,
            "",
            "Computed from:",
            *_origins(request, measured),
        ]
    )


def _needs(plan: Plan, data: DataSet, measured: Measured) -> dict[str, str]:
    """Rows of the table: name and value."""
    nodes, processes = plan.nodes, plan.gpus
    kept, peak, seconds = data.kept_bytes.value, data.peak_bytes.value, data.read_seconds.value
    return {
        "steps": f"{plan.steps:,}",
        "step, ms": f"{plan.step_seconds * 1e3:.0f}",
        "hours": f"{plan.hours:.1f}" if plan.hours >= 0.1 else f"{plan.hours:.2g}",
        "loaders: images/s in all": f"{plan.wanted_images:.0f}",
        "loaders: images/s a machine": f"{plan.wanted_images / nodes:.0f}",
        "cores that decode, in all": f"{plan.wanted_cores:.1f}",
        "cores that decode, a machine": f"{plan.wanted_cores / nodes:.1f} of {plan.loader_cores:.0f}",
        "workers a GPU (data.workers), at least": f"{plan.wanted_workers}",
        "storage: MB/s in all": f"{plan.wanted_reads / MB:.0f}",
        "storage: MB/s a machine": f"{plan.wanted_reads / nodes / MB:.0f} of {plan.storage / MB:.0f}",
        "storage: all image files, GB": f"{plan.images * plan.image_bytes / GB:.0f}",
        "gradients: MB that each GPU sends in a step": f"{plan.reduced_bytes / MB:.0f}",
        "gradients: ms at that bandwidth": f"{plan.reduce_seconds * 1e3:.1f}",
        "annotations: GiB a process, kept (most)": f"{kept / GIB:.2f} ({peak / GIB:.2f})",
        "annotations: GiB a machine, kept (most)": f"{processes * kept / GIB:.1f} ({processes * peak / GIB:.1f})",
        "annotations: seconds to read": f"{seconds:.0f}",
        "a checkpoint, MB (with EMA)": f"{measured.checkpoint_bytes.value / MB:.0f} "
        f"({(measured.checkpoint_bytes.value + measured.ema_bytes) / MB:.0f})",
    }


def _origins(request: PlanRequest, measured: Measured) -> list[str]:
    """A line for each number: name, value, where it is from."""
    lines = [
        ("epochs", f"{request.epochs.value:.0f}", request.epochs),
        ("images of a step", f"{request.batch.value:.0f}", request.batch),
        ("step of a GPU without network", f"{request.gpu_seconds.value * 1e3:.0f} ms", request.gpu_seconds),
        ("an image in the loader", f"{measured.decode_seconds.value * 1e3:.1f} ms", measured.decode_seconds),
        ("cores of a machine", f"{request.cores.value:.0f}", request.cores),
        ("cores of a training process", f"{TRAINING_CORES.value:.0f}", TRAINING_CORES),
        ("network of a machine", f"{request.network.value * 8 / GB:g} Gbit/s", request.network),
        ("link between GPUs of a machine", f"{request.link.value * 8 / GB:g} Gbit/s", request.link),
        ("storage of a machine", f"{request.storage.value / MB:g} MB/s", request.storage),
        ("gradients", f"{measured.gradient_bytes.value / MB:.0f} MB", measured.gradient_bytes),
        ("a checkpoint", f"{measured.checkpoint_bytes.value / MB:.0f} MB", measured.checkpoint_bytes),
    ]
    for data in request.data:
        lines += [
            (f"{data.name}: images", f"{data.images.value:,.0f}", data.images),
            (f"{data.name}: objects", f"{data.objects.value:,.0f}", data.objects),
            (f"{data.name}: an image file", f"{data.image_bytes.value / 1e3:.0f} KB", data.image_bytes),
            (f"{data.name}: annotations kept", f"{data.kept_bytes.value / GIB:.2f} GiB", data.kept_bytes),
            (f"{data.name}: annotations, most", f"{data.peak_bytes.value / GIB:.2f} GiB", data.peak_bytes),
            (f"{data.name}: annotations read", f"{data.read_seconds.value:.0f} s", data.read_seconds),
        ]
    return [_line(*line) for line in lines]


def _line(name: str, value: str, figure: Figure) -> str:
    return f"  {name:34} {value:>12}  {figure}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
