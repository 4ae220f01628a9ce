"""The commit that is checked out."""

import subprocess
from functools import cache
from pathlib import Path


@cache
def code_version() -> str:
    """The commit that is checked out, with `+` if files differ from it; `unknown` outside a checkout.

    Asked once a process: files that are edited during a run are not what it runs.
    """
    here = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip() or "unknown"
