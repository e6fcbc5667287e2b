"""Memory that nobody needs any more, given back to the system."""

import gc


def release() -> None:
    """Frees what only cycles and free lists hold, and returns free memory to the system; takes some milliseconds.

    What 5000 clients leave behind are holes: without this the C library keeps 5 MB of them for ever. Other C libraries
    than glibc have no `malloc_trim`, and keep less.
    """
    import ctypes  # noqa: PLC0415 - 200 KB that a bridge with few clients never needs

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
