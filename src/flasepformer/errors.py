"""The one base class of the errors that are meant for a person."""


class FlasepformerError(Exception):
    """Whatever this package refuses or cannot do; the message says what was expected, what came, what to do.

    Every error of ours is also one of Python's own kinds, such as `ValueError` or `OSError`.
    """


class InputError(FlasepformerError, ValueError):
    """Something of a wrong kind, shape or range was passed."""


class Cancelled(FlasepformerError):
    """To raise in a progress callback: the work ends there, and leaves nothing half written."""
