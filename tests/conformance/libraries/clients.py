"""`python clients.py LIBRARY URL` connects with a WebSocket library as documented, and prints one message."""

import asyncio
import sys
from collections.abc import Callable


def websockets_asyncio(url: str) -> str:
    import websockets

    async def read() -> str:
        async with websockets.connect(url, proxy=None, max_size=None) as socket:
            return str(await socket.recv())

    return asyncio.run(read())


def websockets_sync(url: str) -> str:
    from websockets.sync.client import connect

    with connect(url, proxy=None, max_size=None) as socket:
        return str(socket.recv())


def aiohttp(url: str) -> str:
    import aiohttp

    async def read() -> str:
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            return str(await socket.receive_str())

    return asyncio.run(read())


def websocket_client(url: str) -> str:
    import websocket

    socket = websocket.create_connection(url)
    message = socket.recv()
    socket.close()
    return str(message)


def ws4py(url: str) -> str:
    from ws4py.client import WebSocketBaseClient

    found: list[str] = []

    class Client(WebSocketBaseClient):
        def handshake_ok(self) -> None:
            self.run()

        def received_message(self, message: object) -> None:
            found.append(str(message))
            self.close()

    Client(url).connect()
    return found[0]


def httpx_ws(url: str) -> str:
    from httpx_ws import connect_ws

    with connect_ws(url) as socket:
        return str(socket.receive_text())


def tornado(url: str) -> str:
    from tornado.websocket import websocket_connect

    async def read() -> str:
        socket = await websocket_connect(url)
        message = await socket.read_message()
        socket.close()
        return str(message)

    return asyncio.run(read())


def picows(url: str) -> str:
    import picows

    async def read() -> str:
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        class Client(picows.WSListener):
            def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
                if frame.msg_type == picows.WSMsgType.TEXT and not found.done():
                    found.set_result(frame.get_payload_as_utf8_text())

        transport, _ = await picows.ws_connect(Client, url)
        message = await found
        transport.disconnect()
        return message

    return asyncio.run(read())


def lomond(url: str) -> str:
    from lomond import WebSocket

    socket = WebSocket(url)
    for event in socket:
        if event.name == "text":
            return str(event.text)
    raise ConnectionError


def simple_websocket(url: str) -> str:
    import simple_websocket

    socket = simple_websocket.Client.connect(url)
    message = socket.receive()
    socket.close()
    return str(message)


def soup(url: str) -> str:
    import gi

    gi.require_version("Soup", "3.0")
    from gi.repository import GLib, Soup

    loop, found = GLib.MainLoop(), []

    def message(connection, kind, data):
        found.append(data.get_data().decode())
        loop.quit()

    def connected(session, result):
        socket = session.websocket_connect_finish(result)
        socket.set_max_incoming_payload_size(0)
        socket.connect("message", message)
        found.append(socket)

    session = Soup.Session()
    session.websocket_connect_async(Soup.Message.new("GET", url), None, None, 0, None, connected)
    loop.run()
    return str(found[-1])


LIBRARIES: dict[str, Callable[[str], str]] = {
    name: found for name, found in globals().items() if callable(found) and found.__module__ == __name__
}

if __name__ == "__main__":
    sys.stdout.write(LIBRARIES[sys.argv[1]](sys.argv[2]) + "\n")
