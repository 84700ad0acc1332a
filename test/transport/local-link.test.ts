import { expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { createLocalPair } from "../../src/transport/local-link.ts";
import { dataFrame, observe } from "./kit.ts";

const identity = (name: string) => ({ name, address: "/usb", fingerprint: "", ownAuthority: true });

function pair() {
  return createLocalPair({ clock: createFakeClock(), client: identity("web"), server: identity("store") });
}

async function jobs(): Promise<void> {
  for (let job = 0; job < 50; job++) await Promise.resolve();
}

test("frames go both ways, in order; a frame is taken when the other end has consumed it, which has to start first", async () => {
  const { client, server } = pair();
  expect([client.peer.name, server.peer.name]).toEqual(["store", "web"]);
  const a = observe(client);
  let taken = 0;
  const frames = [1, 2, 3].map((fill) => dataFrame(8_192, fill));
  const sent = frames.map((frame) => client.sendFrame(frame).then(() => taken++));
  expect(client.send({ type: "heartbeat", bytes: 0, phase: "scan" })).toBe(true);
  await jobs();
  expect([taken, client.bytesQueued > 3 * 8_192]).toEqual([0, true]);
  const b = observe(server);
  await Promise.all(sent);
  server.send({ type: "grant", frames: 3 });
  await jobs();
  expect(b.payloads.slice(0, 3).map((payload) => [payload.length, payload[0]])).toEqual(
    [1, 2, 3].map((fill) => [8_192, fill]),
  );
  expect(b.messages.map(({ type }) => type)).toEqual(["data", "data", "data", "heartbeat"]);
  expect(a.messages.map(({ type }) => type)).toEqual(["grant"]);
  expect([client.bytesQueued, client.bytesSent, server.bytesReceived]).toEqual([
    0,
    server.bytesReceived,
    client.bytesSent,
  ]);
});

test("close lets through what was sent before; then both ends are over, once", async () => {
  const { client, server } = pair();
  const [a, b] = [observe(client), observe(server)];
  client.send({ type: "bye" });
  await Promise.all([client.close(), client.close()]);
  await server.close();
  await jobs();
  expect(b.messages).toEqual([{ type: "bye" }]);
  expect([a.ends, b.ends]).toEqual([[undefined], [undefined]]);
  await expect(client.sendFrame(dataFrame(4_096, 0))).rejects.toMatchObject({ code: "connection-lost" });
  expect(server.send({ type: "bye" })).toBe(false);
});

test("an end that is destroyed loses what is on its way, and the other is told", async () => {
  const { client, server } = pair();
  const [a, b] = [observe(client), observe(server)];
  const lost = client.sendFrame(dataFrame(4_096, 0));
  const error = new ReplicationError("aborted", "stopped");
  client.destroy(error);
  await expect(lost).rejects.toMatchObject({ code: "connection-lost" });
  await jobs();
  expect(a.ends).toEqual([error]);
  expect(b.ends).toMatchObject([{ code: "connection-lost" }]);
  expect(b.messages).toEqual([]);
  await client.close();
});

test("bytes that are no frame end the end that reads them, and the one that sent them", async () => {
  const { client, server } = pair();
  const [a, b] = [observe(client), observe(server)];
  const frame = dataFrame(4_096, 0);
  frame[0] = 0;
  await expect(client.sendFrame(frame)).rejects.toMatchObject({ code: "frame-malformed" });
  await jobs();
  expect(b.ends).toMatchObject([{ code: "frame-malformed" }]);
  expect(a.ends).toMatchObject([{ code: "connection-lost" }]);
});
