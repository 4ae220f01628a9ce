"""Errors that are told in one sentence."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, and how to mend it.

    `main.py` prints the sentence without a traceback. It then exits with code 2, or with 3 if the error is a
    `PeerLost`. Programming errors use ordinary exceptions.
    """


class PeerLost(UserError):
    """Another process of this run has gone. Its own message is the one to read, and `main.py` exits with code 3."""


class NonFinite(UserError):
    """Predictions, losses or gradients hold NaN or infinity."""


class Interrupted(Exception):
    """The run was asked to stop. Whoever raises this has saved nothing; whoever started the run saves it."""
