"""`python sse.py LIBRARY` reads URLs (JSON) from standard input, and prints what the library delivers for each.

A result has the events, each as `[type, data, id, retry]`, and the name of the error that ended the response, or null.
"""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx


def httpx_sse(client: httpx.Client, url: str) -> Iterator[list[Any]]:
    """Follows the README of httpx-sse."""
    from httpx_sse import connect_sse

    with connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            yield [event.event, event.data, event.id, event.retry]


def sseclient(client: httpx.Client, url: str) -> Iterator[list[Any]]:
    """Follows the README of sseclient-py, with httpx."""
    from sseclient import SSEClient

    with client.stream("GET", url, headers={"Accept": "text/event-stream"}) as response:
        for event in SSEClient(response.iter_bytes()).events():
            yield [event.event, event.data, event.id, event.retry]


def result(library: Callable[[httpx.Client, str], Iterator[list[Any]]], client: httpx.Client, url: str) -> object:
    """Returns what the library delivers from one URL."""
    events: list[list[Any]] = []
    try:
        for event in library(client, url):
            events += [event]
    except Exception as error:
        return {"events": events, "error": type(error).__name__}
    return {"events": events, "error": None}


def main() -> None:
    library = {"httpx-sse": httpx_sse, "sseclient-py": sseclient}[sys.argv[1]]
    with httpx.Client(timeout=30, trust_env=False) as client, ThreadPoolExecutor(6) as pool:
        json.dump(list(pool.map(partial(result, library, client), json.load(sys.stdin))), sys.stdout)


main()
