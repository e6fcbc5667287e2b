// Attacks with which a page could try to reach a bridge on the user's machine. Each attack takes a URL of the bridge
// and resolves to a short result. Each function in `places` runs an attack in the page, or in a frame or worker that
// the page opens, and resolves to the attack's result.
"use strict";

const attacks = {
  socket: (url) =>
    new Promise((resolve) => {
      const socket = new WebSocket(url);
      socket.onopen = () => resolve("open");
      socket.onclose = (close) => resolve(`closed ${close.code} ${close.reason}`.trim());
    }),

  fetch: (url) => read(url, { mode: "cors" }),

  fetchOpaque: (url) => read(url, { mode: "no-cors" }),

  fetchWithCredentials: (url) => read(url, { mode: "cors", credentials: "include" }),

  fetchWithWords: (url) => read(url, { mode: "cors", headers: { "X-Words": "x" } }),

  fetchPost: (url) => read(url, { mode: "no-cors", method: "POST", body: "x" }),

  request: (url) =>
    new Promise((resolve) => {
      const request = new XMLHttpRequest();
      request.open("GET", url);
      request.onload = () => resolve(`${request.status} ${request.responseText}`);
      request.onerror = () => resolve(`error ${request.status} ${request.responseText}`.trim());
      request.send();
    }),

  events: (url) =>
    new Promise((resolve) => {
      const source = new EventSource(url);
      source.onopen = () => resolve("open");
      source.onerror = () => resolve(`error ${source.readyState}`);
    }),

  script: (url) => element("script", { src: url }),

  scriptWithCors: (url) => element("script", { src: url, crossOrigin: "anonymous" }),

  module: (url) => import(url).then(() => "loaded", (error) => error.name),

  image: (url) => element("img", { src: url }),

  style: (url) => element("link", { rel: "stylesheet", href: url }),

  importScripts: async (url) => {
    try {
      importScripts(url);
      return "loaded";
    } catch (error) {
      return error.name;
    }
  },

  // Tries to read the document in the frame, because a page can't see whether a frame has loaded.
  iframe: (url) => framed("iframe", "src", url),
  object: (url) => framed("object", "data", url),
  embed: (url) => framed("embed", "src", url),

  // The test itself also tries to read the opened window.
  popup: async (url) => {
    window.opened = open(url);
    return window.opened === null ? "no window" : "a window";
  },

  form: async (url) => send(url),

  formWithWords: async (url) => send(url, Object.assign(document.createElement("input"), { name: "words" })),
};

async function read(url, options) {
  try {
    const response = await fetch(url, options);
    return `${response.type} ${response.status} ${await response.text()}`.trim();
  } catch (error) {
    return error.name;
  }
}

function element(name, properties) {
  return new Promise((resolve) => {
    const made = Object.assign(document.createElement(name), properties);
    made.onload = () => resolve("loaded");
    made.onerror = () => resolve("error");
    document.body.append(made);
  });
}

async function framed(name, property, url) {
  const made = document.createElement(name);
  const loaded = new Promise((resolve) => (made.onload = made.onerror = resolve));
  made[property] = url;
  document.body.append(made);
  await loaded;
  return inside(made.contentWindow ?? window[0]);
}

function send(url, ...fields) {
  const form = Object.assign(document.createElement("form"), { method: "POST", action: url });
  form.append(...fields);
  document.body.append(form);
  // The form is sent only after this function has returned, because sending the form replaces this page.
  setTimeout(() => form.submit());
  return "sent";
}

function inside(other) {
  try {
    return `read ${other.document.body.innerText}`.trim();
  } catch (error) {
    return error.name;
  }
}

const places = {
  page: (attack, url) => attacks[attack](url),

  sandboxedFrame: (attack, url) => frame({ sandbox: "allow-scripts", srcdoc: agent(attack, url) }),

  dataFrame: (attack, url) => frame({ src: `data:text/html,${encodeURIComponent(agent(attack, url))}` }),

  blobFrame: (attack, url) =>
    frame({ src: URL.createObjectURL(new Blob([agent(attack, url)], { type: "text/html" })) }),

  worker: (attack, url) => answer(new Worker("/attacks.js"), attack, url),

  sharedWorker: (attack, url) => answer(new SharedWorker("/attacks.js").port, attack, url),

  blobWorker: (attack, url) => answer(new Worker(URL.createObjectURL(new Blob([loader()]))), attack, url),

  dataWorker: (attack, url) =>
    answer(new Worker(`data:text/javascript,${encodeURIComponent(loader())}`), attack, url),
};

function agent(attack, url) {
  const words = [attack, url].map((word) => JSON.stringify(word)).join();
  return `<body><script src="${location.origin}/attacks.js"></script>
    <script>places.page(${words}).then((saw) => parent.postMessage(saw, "*"))</script>`;
}

function loader() {
  return `importScripts("${location.origin}/attacks.js")`;
}

function frame(properties) {
  return new Promise((resolve) => {
    addEventListener("message", (message) => resolve(message.data));
    document.body.append(Object.assign(document.createElement("iframe"), properties));
  });
}

function answer(port, attack, url) {
  return new Promise((resolve) => {
    port.onmessage = (message) => resolve(message.data);
    port.onerror = (error) => resolve(`no worker: ${error.message}`);
    port.postMessage([attack, url]);
  });
}

// In a worker, runs the attack that the page has sent.
function answerOn(port) {
  port.onmessage = async ({ data: [attack, url] }) => port.postMessage(await attacks[attack](url));
}

if ("onconnect" in globalThis) {
  onconnect = (event) => answerOn(event.ports[0]);
} else if (!("document" in globalThis)) {
  answerOn(globalThis);
}
