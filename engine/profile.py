"""`profile`: what a model costs, or what training it on a cluster needs."""

from util.command_config import ProfileConfig
from util.config import ModelConfig


def profile(options: ProfileConfig) -> str:
    """Tables of costs; with `plan`, of what a cluster needs instead.

    Raises:
        UserError: no such device, checkpoint, image size or key of a plan.
    """
    # Torch takes seconds to import: a mistake in the plan is told before.
    if options.plan is None:
        from engine.cost_tables import cost_tables

        return cost_tables(options)
    from engine.plan.request import read_request

    is_base = not options.checkpoint and options.model == ModelConfig()
    request = read_request(options.plan, options.precision, is_base)
    from engine.plan.measure import measure_here
    from engine.plan.report import report

    return report(request, measure_here(options, request))
