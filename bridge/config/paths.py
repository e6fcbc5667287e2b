"""The paths that the bridge serves besides its endpoint. `BRIDGE_PATH` can't be one of them."""

SCHEMAS = "/schemas/"
"""Every path below it is reserved too."""

ASYNCAPI = "/asyncapi.json"

PROBED = ("/healthz", "/readyz", "/metrics")
"""For monitoring programs. Some of them send HTTP/1.0 without Host (HAProxy's default check)."""

NAMED = (*PROBED, SCHEMAS, ASYNCAPI)
"""The paths that the sentence for an unknown path lists besides `/`."""

FUTURE = ("/openapi.json",)
"""Paths of later versions. An endpoint with one of these paths would have to move then."""

PAGE_FILES = ("page.js", "filter.js", "health.js", "list.js", "rate.js", "row.js", "page.css", "icon.svg")
"""The files that the live page at `/` loads, besides those below SCHEMAS. Each has the path `/NAME`."""

_RESERVED = frozenset({"/", *NAMED, *FUTURE, *(f"/{name}" for name in PAGE_FILES)})


def is_reserved(path: str) -> bool:
    """Whether the bridge serves this path besides its endpoint, or may do so in a later version."""
    return path in _RESERVED or path.startswith(SCHEMAS)
