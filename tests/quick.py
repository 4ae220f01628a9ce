"""What takes most of the time of a short run, and matters to few tests."""

import os


def make_quick() -> None:
    """Runs of this process wait for no disk and draw no curves.

    Only a power cut tells whether files have reached the disk. Curves are drawn by tests/engine/test_curves.py and
    tests/test_main.py.
    """
    import engine.run

    os.fsync = lambda descriptor: None
    engine.run.plot_run = lambda folder: None
