// Publishes events with amqplib, and reports which of them a bridge rejects.
// Copy this file, and run `npm install amqplib`.
//
//   const publisher = await openPublisher("amqp://guest:guest@localhost:5672/", "killmails", console.log);
//   await publisher.publish("killmail", data);
//   await publisher.close();

import { randomUUID } from "node:crypto";

import amqp from "amqplib";

const MAX_KNOWN = 10_000; // The number of newest events whose rejects are recognized.
const MAX_QUEUED = 1_000; // The most rejects that wait for this program. Without a bound, they could fill the broker.

// `onReject` is called with the message id, the reason (a slug) and a sentence. The exchange for events and the
// exchange for rejects must exist. If the connection is lost, `onError` is called: open another publisher, and publish
// the unconfirmed events again.
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
  let isOpen = false; // `openPublisher` throws earlier errors.
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
    // The rejects of all publishers' events arrive in this function.
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
    // On RabbitMQ 4.3, if a bound queue is deleted with its connection, confirms of other publishers fail.
    try {
      await channel.unbindQueue(queue, rejects, "");
    } finally {
      await connection.close();
    }
  }

  return { publish, close };
}
