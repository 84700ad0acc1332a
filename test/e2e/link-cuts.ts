/** One copy a cut: the connection is reset after so many bytes, wherever in the protocol that is. */
import { join } from "node:path";
import { expect } from "vitest";
import { makeNoise } from "./content.ts";
import { cmpFiles, type Pki, replicaPath, type Scope, seededRandom, send, startReceiver, tempDir } from "./kit.ts";
import { startProxy } from "./proxy.ts";

export interface CutOptions {
  readonly imageBytes: number;
  readonly seed: number;
  /** Cuts at random bytes, beside those at places of interest. */
  readonly random: number;
  /** Copies side by side. */
  readonly atOnce: number;
}

export async function cutAtEveryStage(scope: Scope, pki: Pki, options: CutOptions): Promise<void> {
  const dir = tempDir(scope);
  const image = join(dir, "disk.raw");
  makeNoise(image, options.imageBytes, options.seed);
  const receiver = await startReceiver(scope, { storeDir: join(dir, "store"), tls: pki.recv });
  const copy = async (disk: string, cutAfterBytes: number | undefined): Promise<number> => {
    const proxy = await startProxy(scope, receiver.port, cutAfterBytes === undefined ? {} : { cutAfterBytes });
    // Another disk, another image as far as the lock of this host goes: the target differs.
    const result = await send(scope, { image, port: proxy.port, disk, tls: pki.send });
    const at = `cut at byte ${String(cutAfterBytes)}`;
    expect(result.code, `${at}: ${result.stderr}`).toBe(0);
    expect(result.done?.point, at).toBe(1);
    expect(cmpFiles(image, replicaPath(receiver.storeDir, disk)), at).toBeUndefined();
    const points = receiver.lines.filter((line) => line.event === "point" && line["disk"] === disk);
    expect(points, at).toHaveLength(1);
    expect(points[0], at).toMatchObject({ point: 1, root: result.done?.root });
    const passed = proxy.bytes;
    await proxy.close();
    return passed;
  };

  const total = await copy("whole", undefined);
  const random = seededRandom(options.seed);
  // Hello and certificates, open, first data; then the end: commit, durable, bye, close.
  const cuts = [0, 300, 1_500, 2_500, 3_200, 4_000, total - 1, total - 30, total - 60, total - 150, total - 300];
  for (let count = 0; count < options.random; count++) cuts.push(random() % total);
  const queue = [...cuts.entries()];
  const worker = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      await copy(`cut-${String(next[0])}`, next[1]);
    }
  };
  await Promise.all(Array.from({ length: options.atOnce }, worker));
}
