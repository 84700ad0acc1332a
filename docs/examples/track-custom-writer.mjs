// A hypervisor writes to a disk of its own through a tracked writer; each cycle reads what was written and no more.
// Run it in a folder where "replicate" is installed: node track-custom-writer.mjs FOLDER
import { join } from "node:path";
import { createAuthority, createEngine, createReceiver, issueCertificate, loadCredentials } from "replicate";
import { createTrackedSender, trackWriter } from "replicate/tracking";

const folder = process.argv[2] ?? ".";
const engine = await createEngine();
const { clock, random } = engine;

const directory = join(folder, "pki");
await createAuthority({ directory, clock, random });
await issueCertificate({ directory, name: "backup", hosts: ["127.0.0.1"], clock, random });
await issueCertificate({ directory, name: "host", clock, random });

const receiver = await createReceiver({
  engine,
  directory: join(folder, "store"),
  credentials: await loadCredentials(join(directory, "backup")),
  host: "127.0.0.1",
  port: 0,
});

/** A BlockWriter over a buffer. */
const content = Buffer.alloc(50_000_000, 1);
const disk = {
  sizeBytes: content.length,
  sectorBytes: 512,
  async read(target, offset) {
    target.set(content.subarray(offset, offset + target.length));
  },
  async *extents(offset, length) {
    yield { kind: "data", offset, length };
  },
  async write(source, offset) {
    content.set(source, offset);
  },
  async zero(offset, length) {
    content.fill(0, offset, offset + length);
  },
  async flush() {},
  async close() {},
};

const tracked = await trackWriter(disk, { engine, name: "a disk in memory", journal: join(folder, "disk.rbj") });
const sender = createTrackedSender({
  engine,
  tracked,
  disk: "memory",
  receiver: { host: "127.0.0.1", port: receiver.port, credentials: await loadCredentials(join(directory, "host")) },
});

const tell = ([{ point, reason, funnel }]) =>
  console.log(JSON.stringify({ point, reason, read: funnel.readBytes, changed: funnel.changedBytes }));
tell(await sender.cycle(AbortSignal.timeout(60_000)));
await tracked.image.write(Buffer.from("hello, disk"), 25_000_000);
tell(await sender.cycle(AbortSignal.timeout(60_000)));

await tracked.close();
await receiver.close();
await engine.close();
