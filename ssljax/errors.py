"""The one exception that is meant for a user's eyes."""


class InputError(ValueError):
    """Bad input: a sentence that says what is wrong and what to do; `main` prints it without a traceback."""
