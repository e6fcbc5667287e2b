"""What each of several workers that run tests at the same time has for itself."""


def share_of(first: int, last: int, index: int, count: int) -> tuple[int, int]:
    """The part of a range that belongs to worker `index` of `count`: its first, and the one behind its last."""
    size = (last - first) // count
    return first + index * size, first + (index + 1) * size
