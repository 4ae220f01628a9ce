"""What a user should know although the program goes on."""

import os
import sys
from functools import cache


@cache
def say_once(remark: str) -> None:
    """To stderr, once, from one process."""
    if os.environ.get("RANK", "0") == "0":
        print(remark, file=sys.stderr)
