"""The one base class of the errors that are meant for a person, and how a want of memory is known."""

_OUT_OF_MEMORY = (
    *("allocate memory", "out of memory", "bad_alloc", "failed to map segment"),
    "error return without exception set",
)


class FlasepformerError(Exception):
    """Whatever this package refuses or cannot do; the message says what was expected, what came, what to do.

    Every error of ours is also one of Python's own kinds, such as `ValueError` or `OSError`.
    """


class InputError(FlasepformerError, ValueError):
    """Something of a wrong kind, shape or range was passed."""


class Cancelled(FlasepformerError):
    """To raise in a progress callback: the work ends there, and leaves nothing half written."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or what it came from, was for want of memory.

    PyTorch says it on a CPU in the message only, and so does the loader of a library; what an import calls
    may fail without any exception set, which Python makes a SystemError.
    """
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
