/** Images of real tools through a whole cycle: sent to a raw replica, and sent again. */
import { createHash } from "node:crypto";
import { createReadStream, rmSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { createRawReader } from "../../src/image/raw.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { contentDigest, type Sample, unpackSample } from "../image/vhdx/samples.ts";
import { type Pki, replicaPath, type Scope, send, startReceiver, tempDir } from "./kit.ts";

const storage = createNodeStorage();

async function digestOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk as Uint8Array);
  return hash.digest("hex");
}

/** Each arrives with the content its index says, and stays what it is. */
export async function cycleSamples(t: Scope, pki: Pki, ones: readonly Sample[]): Promise<void> {
  const dir = tempDir(t);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  for (const [index, { file, parent, digest }] of ones.entries()) {
    if (parent !== undefined) unpackSample(parent, dir);
    const image = unpackSample(file, dir);
    const before = await digestOf(image);
    const disk = `sample-${String(index)}`;
    for (const reason of ["initial", "scan"]) {
      const result = await send(t, { image, port: receiver.port, disk, tls: pki.send });
      expect(result.code, `${file}: ${result.stderr}`).toBe(0);
      expect(result.done).toMatchObject({ reason });
    }
    expect(await digestOf(image), file).toBe(before);
    const replica = await storage.open(replicaPath(receiver.storeDir, disk));
    const reader = createRawReader(replica, { sizeBytes: (await replica.stat()).sizeBytes });
    expect(await contentDigest(reader), file).toBe(digest);
    await reader.close();
    rmSync(image);
  }
}
