"""Makes ready the server that processes which load data are forked from, where the system has one (Python 3.14)."""

import multiprocessing
from multiprocessing import forkserver


def prepare_workers(count: int, module: str) -> None:
    """Start the server, which imports a module once for all workers, while this process reads its data.

    Nothing is done where there are no workers, or they are started in another way.

    Args:
        count: of workers.
        module: what each of them would import by itself, torch with it.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if count and method == "forkserver":
        multiprocessing.get_context(method).set_forkserver_preload(["__main__", module])
        forkserver.ensure_running()
