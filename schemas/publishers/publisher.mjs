// Publishes events with amqplib, and reports the events that a bridge rejects.
// Copy this file, and run `npm install amqplib`.
//
//   const publisher = await openPublisher("amqp://guest:guest@localhost:5672/", "killmails", console.log);
//   await publisher.publish("killmail", data);
//   await publisher.close();

import { randomUUID } from "node:crypto";

import amqp from "amqplib";

const MAX_KNOWN = 10_000; // The program remembers this many of its newest events, and recognizes only their rejects.
// At most this many rejects wait for this program. Without this limit, waiting rejects could fill the broker.
const MAX_QUEUED = 1_000;

// `onReject` is called with the message id, the reason as a slug, and the reason as a sentence. The exchange for events
// and the exchange for rejects must exist. If the connection is lost, `onError` is called: open another publisher, and
// publish the unconfirmed events again.
export async function openPublisher(url, exchange, onReject, options = {}) {
  const connection = await amqp.connect(url);
  try {
    return await publisherOn(connection, exchange, onReject, options);
  } catch (error) {
    await connection.close().catch(() => {}); // The connection may be closed already.
    throw error;
  }
}

async function publisherOn(connection, exchange, onReject, { rejects = "bridge.rejected", onError = console.error }) {
  const known = new Set();
  let isOpen = false; // Before the publisher is open, `openPublisher` throws all errors itself.
  let cause;
  const report = (error) => isOpen && error && onError(error);
  // If the broker closes the connection, amqplib emits only `close`. After any other loss of the connection, amqplib
  // emits `error`, and then `close`.
  connection.on("error", (error) => (cause = error));
  connection.on("close", (error = cause) => report(error));
  const channel = await connection.createConfirmChannel();
  channel.on("error", report);
  await channel.checkExchange(exchange);
  const { queue } = await channel.assertQueue("", { exclusive: true, maxLength: MAX_QUEUED });
  await channel.bindQueue(queue, rejects, "");
  await channel.consume(queue, receive, { noAck: true });
  isOpen = true;

  function receive(message) {
    // This function gets the rejected events of all publishers, not only of this one.
    const { messageId, headers } = message?.properties ?? {};
    if (known.delete(messageId)) onReject(messageId, headers["x-reject-reason"], headers["x-reject-detail"]);
  }

  // Waits for the broker's confirm. Returns the message id.
  function publish(type, data) {
    const messageId = randomUUID();
    known.add(messageId);
    if (known.size > MAX_KNOWN) known.delete(known.values().next().value);
    const body = Buffer.from(JSON.stringify(data));
    const properties = { type, messageId, contentType: "application/json", persistent: true };
    return new Promise((resolve, reject) => {
      const confirmed = (error) => (error ? reject(error) : resolve(messageId));
      channel.publish(exchange, "", body, properties, confirmed);
    });
  }

  async function close() {
    // The queue is unbound first: if the connection ends while the queue is still bound, RabbitMQ 4.3 may answer other
    // publishers with nacks.
    try {
      await channel.unbindQueue(queue, rejects, "");
    } finally {
      await connection.close();
    }
  }

  return { publish, close };
}
