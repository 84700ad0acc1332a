// A backup tool sends a disk it holds in memory, through a reader of its own, to a receiver in the same process.
// Run it in a folder where "replicate" is installed: node send-custom-reader.mjs FOLDER
import { join } from "node:path";
import { createAuthority, createEngine, createReceiver, createSender, issueCertificate, loadCredentials } from "replicate";

const folder = process.argv[2] ?? ".";
const engine = await createEngine();
const { clock, random } = engine;

const directory = join(folder, "pki");
await createAuthority({ directory, clock, random });
await issueCertificate({ directory, name: "backup", hosts: ["127.0.0.1"], clock, random });
await issueCertificate({ directory, name: "tool", clock, random });

const receiver = await createReceiver({
  engine,
  directory: join(folder, "store"),
  credentials: await loadCredentials(join(directory, "backup")),
  host: "127.0.0.1",
  port: 0,
});

const content = Buffer.alloc(10_000_000);
content.write("hello, disk", 5_000_000);

/** A BlockReader over a buffer: no files, so no `runs`. */
const reader = {
  sizeBytes: content.length,
  sectorBytes: 512,
  async read(target, offset) {
    target.set(content.subarray(offset, offset + target.length));
  },
  async *extents(offset, length) {
    yield { kind: "data", offset, length };
  },
  async close() {},
};

const sender = createSender({
  engine,
  source: { reader, name: "a disk in memory", identity: "memory-1" },
  disk: "memory",
  receiver: {
    host: "127.0.0.1",
    port: receiver.port,
    credentials: await loadCredentials(join(directory, "tool")),
  },
});
const report = await sender.run(AbortSignal.timeout(60_000));
console.log(JSON.stringify({ point: report.point, shipped: report.funnel.shippedBytes, root: report.root }));

await receiver.close();
await engine.close();
