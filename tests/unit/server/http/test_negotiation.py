"""Tests which media type the header `Accept` prefers."""

from __future__ import annotations

import pytest

from bridge.server.http.negotiation import preferred

TYPES = ("text/event-stream", "application/json")
SSE, JSON = TYPES


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("application/json", JSON),
        ("text/event-stream", SSE),
        # A browser's navigation, and the default of most clients.
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", None),
        ("*/*", None),
        ("application/*,text/*", None),
        ("application/json, */*", JSON),
        ("application/json, text/plain, */*", JSON),
        ("application/jsonl", None),
        ("application/json text/event-stream", None),
        # The higher weight wins, and then the first member.
        ("text/event-stream, application/json", SSE),
        ("application/json, text/event-stream", JSON),
        ("application/json;q=0.5, text/event-stream", SSE),
        ("application/json;q=0.5, text/event-stream;q=0.5", JSON),
        ("application/json;q=0.5, text/event-stream;q=0.501", SSE),
        ("application/json;q=0.1, application/json;q=0.9, text/event-stream;q=0.5", JSON),
        ("*/*, application/json;q=0.001", JSON),
        # The weight 0 excludes a media type.
        ("application/json;q=0", None),
        ("application/json;q=0.000, text/event-stream;q=.1", SSE),
        # Other parameters make no difference.
        ("application/json;charset=utf-8", JSON),
        ("application/json ; indent=2 ;q=0.2, text/event-stream;q=0.3;x", SSE),
        ("text/event-stream;x=q=0.1, application/json;q=0.9", SSE),
        ("application/json;", JSON),
        # A malformed weight counts as 0.
        *(
            (f"application/json;q={weight}, text/event-stream;q=0.1", SSE)
            for weight in ("", "2", "-1", "x", "1.1", "1e-1", "inf")
        ),
        ("application/json;q=1.000, text/event-stream", JSON),
        ("application/json;q=1., text/event-stream", JSON),
    ],
)
def test_exact_media_type_with_the_highest_weight_is_preferred(accept: str, expected: str | None) -> None:
    members = [member.strip() for member in accept.split(",") if member.strip()]
    assert preferred(members, TYPES) == expected
