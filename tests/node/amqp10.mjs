// `node amqp10.mjs HOST PORT ADDRESS KIND BODY` sends one message over AMQP 1.0. KIND names the form in which the
// message carries the body. The program ends with 0 when the broker has accepted the message.
import rhea from "rhea";

const [host, port, address, kind, body] = process.argv.slice(2);
const bodies = {
  data: () => rhea.message.data_section(Buffer.from(body)),
  text: () => body,
  binary: () => Buffer.from(body),
  object: () => JSON.parse(body),
  sequence: () => rhea.message.sequence_section([body]),
};

const connection = rhea.connect({ host, port: Number(port), username: "guest", password: "guest", reconnect: false });
connection.open_sender(address);
connection.once("sendable", ({ sender }) => sender.send({ body: bodies[kind]() }));
connection.on("accepted", () => connection.close());
for (const failure of ["rejected", "released", "connection_error", "session_error", "sender_error", "disconnected"]) {
  connection.on(failure, (context) => {
    console.error(failure, context.error ?? context.connection?.error ?? context.sender?.error ?? "");
    process.exit(1);
  });
}
connection.on("connection_close", () => process.exit(0));
