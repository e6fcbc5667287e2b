"""The paths that the bridge serves besides its endpoint. `BRIDGE_PATH` can't be one of these paths."""

SCHEMAS = "/schemas/"
"""The path of the schema files. Every path below this path is reserved too."""

ASYNCAPI = "/asyncapi.json"
OPENAPI = "/openapi.json"

PROBED = ("/healthz", "/readyz", "/metrics")
"""The paths for monitoring programs.

Some monitoring programs send HTTP/1.0 requests without a Host header, as HAProxy's default check does.
"""

NAMED = (*PROBED, SCHEMAS, ASYNCAPI, OPENAPI)
"""The paths that the bridge lists, besides `/`, in its response to a request for an unknown path."""

PAGE_FILES = ("page.js", "filter.js", "health.js", "list.js", "rate.js", "row.js", "page.css", "icon.svg")
"""The files that the live page at `/` loads, besides the schema files. Each file has the path `/NAME`."""

_RESERVED = frozenset({"/", *NAMED, *(f"/{name}" for name in PAGE_FILES)})


def is_reserved(path: str) -> bool:
    """Whether the bridge serves this path besides its endpoint."""
    return path in _RESERVED or path.startswith(SCHEMAS)
