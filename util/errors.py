"""The error that is the user's to mend."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, and how to mend it.

    `main.py` prints it without a traceback and exits with code 2. Programming errors use ordinary exceptions.
    """
