// The simplest bridge on Bun, with its WebSocket server and amqplib. With TOPICS=1, the program publishes each update
// to a topic of Bun, which can merge several writes into one. Without TOPICS=1, the program itself sends each update to
// each client. The program does not validate events. CERTIFICATE and KEY name the files for TLS.
import { connect } from "amqplib";

const { AMQP, CERTIFICATE, EXCHANGE, KEY, PORT, TOPICS } = process.env;
const TOPIC = "updates";
const clients = new Set<Bun.ServerWebSocket>();

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(PORT),
  tls: CERTIFICATE ? { cert: Bun.file(CERTIFICATE), key: Bun.file(KEY!) } : undefined,
  fetch(request, server) {
    return server.upgrade(request) ? undefined : new Response("only WebSocket", { status: 426 });
  },
  websocket: {
    open(client) {
      if (TOPICS) client.subscribe(TOPIC);
      else clients.add(client);
    },
    close(client) {
      clients.delete(client);
    },
    message() {},
  },
});

const send = TOPICS
  ? (update: string) => server.publish(TOPIC, update)
  : (update: string) => {
      for (const client of clients) client.send(update);
    };

const channel = await (await connect(AMQP!)).createChannel();
await channel.assertExchange(EXCHANGE!, "fanout", { durable: true });
const { queue } = await channel.assertQueue("", { exclusive: true });
await channel.bindQueue(queue, EXCHANGE!, "");
await channel.prefetch(200);
await channel.consume(queue, (message) => {
  const data = JSON.parse(message!.content.toString());
  send(JSON.stringify({ type: "killmail", data, timestamp: Date.now() }));
  channel.ack(message!);
});
