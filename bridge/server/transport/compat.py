"""All workarounds that use undocumented names of the library websockets.

Each workaround states its reason, and the version of the library that needed it. `test_compat.py` has a test for each
workaround, which fails as soon as the library no longer needs the workaround.
"""

try:
    # The compiled function `apply_mask` unmasks a large payload about ten times as fast as Python code. The library
    # websockets has no documented name for this function (websockets 17.4).
    from websockets.speedups import apply_mask
except ImportError:  # websockets has no compiled wheel for this platform
    from websockets.utils import apply_mask

__all__ = ["apply_mask"]
