"""Errors that are told in one sentence."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, and how to mend it.

    `main.py` prints it without a traceback and exits with code 2. Programming errors use ordinary exceptions.
    """


class PeerLost(UserError):
    """Another process of this run has gone; its own message is the one to read."""


class NonFinite(UserError):
    """Predictions, losses or gradients hold NaN or infinity."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved what it needs to go on."""
