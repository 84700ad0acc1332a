/** What tests of this folder look at again and again. */
import { createHash } from "node:crypto";
import { afterAll, beforeAll, expect } from "vitest";
import type { BlockReader } from "../../src/image/block-device.ts";
import type { PairKit } from "./pair-kit.ts";

export async function contentOf(image: BlockReader): Promise<Buffer> {
  const content = Buffer.alloc(image.sizeBytes);
  if (content.length > 0) await image.read(content, 0);
  return content;
}

/** The replica is the image, byte for byte. */
export async function expectEqual(kit: PairKit, image: BlockReader, disk?: string): Promise<void> {
  // Digests: a failed comparison of megabytes prints megabytes.
  const hash = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
  const replica = kit.replica(disk);
  expect(replica.length).toBe(image.sizeBytes);
  expect(hash(replica)).toBe(hash(await contentOf(image)));
}

/** Gathers rejections nobody handled, from before the first test of the file to after the last. */
export function watchRejections(): { take(): Promise<readonly unknown[]> } {
  const found: unknown[] = [];
  const onRejection = (reason: unknown): void => void found.push(reason);
  beforeAll(() => void process.on("unhandledRejection", onRejection));
  afterAll(() => void process.off("unhandledRejection", onRejection));
  return {
    async take() {
      // They are told a turn after the promise was dropped.
      await new Promise((resolve) => setImmediate(resolve));
      return found.splice(0);
    },
  };
}
