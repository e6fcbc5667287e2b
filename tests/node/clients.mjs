// `node clients.mjs LIBRARY URL` connects with a WebSocket library, as in its documentation, and prints one message.
const [library, url, ...protocols] = process.argv.slice(2);

const print = (message) => {
  process.stdout.write(`${message}\n`, () => process.exit(0));
};
const fail = (error) => {
  console.error(String(error?.message ?? error));
  process.exit(1);
};

// The libraries that use this function have the interface of a browser's WebSocket.
const follow = (WebSocket, ...options) => {
  const socket = new WebSocket(url, protocols, ...options);
  socket.onmessage = (event) => print(event.data);
  socket.onerror = (event) => fail(event.message ?? "error");
  socket.onclose = (event) => fail(`closed ${event.code}`);
};

const libraries = {
  ws: async () => follow((await import("ws")).WebSocket),
  undici: async () => follow((await import("undici")).WebSocket),
  "faye-websocket": async () => follow((await import("faye-websocket")).default.Client),
  websocket: async () => {
    const { w3cwebsocket } = (await import("websocket")).default;
    follow(w3cwebsocket, undefined, undefined, undefined, { maxReceivedFrameSize: 2 ** 23 });
  },
  // `builtin` is the WebSocket of Bun, Deno or Node itself.
  builtin: async () => follow(globalThis.WebSocket),
};

await libraries[library]();
