import { createHash } from "node:crypto";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockReader, BlockWriter } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { randomBytes } from "../random.ts";
import { methodsOf } from "../replica/point-kit.ts";
import { PairKit } from "./pair-kit.ts";

let kit: PairKit;
const rejections: unknown[] = [];
const onRejection = (reason: unknown): void => void rejections.push(reason);

beforeEach(async () => {
  rejections.length = 0;
  process.on("unhandledRejection", onRejection);
  kit = await PairKit.create();
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  process.off("unhandledRejection", onRejection);
  expect(rejections).toEqual([]);
});

async function contentOf(image: BlockReader): Promise<Buffer> {
  const content = Buffer.alloc(image.sizeBytes);
  if (content.length > 0) await image.read(content, 0);
  return content;
}

async function expectEqual(image: BlockReader, disk?: string): Promise<void> {
  // Digests: a failed comparison of megabytes prints megabytes.
  const hash = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
  const replica = kit.replica(disk);
  expect(replica.length).toBe(image.sizeBytes);
  expect(hash(replica)).toBe(hash(await contentOf(image)));
}

async function fill(image: BlockWriter, offset: number, length: number): Promise<void> {
  await image.write(randomBytes(length), offset);
}

/** Takes `turns` turns of the event loop. */
function slowGuard(turns: number): { begin(): Promise<void>; check(): Promise<void> } {
  return {
    begin: () => Promise.resolve(),
    async check() {
      for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
    },
  };
}

describe("what travels is what changed", () => {
  test("initial copy, delta, nothing", async () => {
    const image = createMemoryImage(8 * MIB + 1_000);
    await fill(image, 0, 2 * MIB);
    await fill(image, 5 * MIB, 64 * KIB);
    const first = await kit.send(image);
    expect(first).toMatchObject({ point: 1, created: true, reason: "initial", attempts: 1 });
    expect(first.funnel).toMatchObject({ changedBytes: 2 * MIB + 64 * KIB, zeroBlocks: 0, repeatedBlocks: 0 });
    await expectEqual(image);

    await fill(image, 10 * 4_096, 3 * 4_096);
    await fill(image, 8 * MIB + 990, 10);
    await image.zero(64 * KIB * 16, 64 * KIB);
    const second = await kit.send(image);
    expect(second).toMatchObject({ point: 2, reason: "scan" });
    // Three parts, the 1000 bytes of the part at the end (over zero), and one block that became zero.
    const parts = 3 * 4_096 + 1_000;
    expect(second.funnel).toMatchObject({ changedBytes: parts + 64 * KIB, shippedBytes: parts, zeroBlocks: 1 });
    await expectEqual(image);

    const third = await kit.send(image);
    expect(third).toMatchObject({ point: 3, created: true, root: second.root });
    expect(third.funnel).toMatchObject({ changedBytes: 0, shippedBytes: 0 });
    expect(await kit.send(image, { skipEmpty: true })).toMatchObject({ point: 3, created: false, root: second.root });
  });

  test.each([
    [16 * KIB, "xxh64"],
    [1 * MIB, "xxh64"],
    [64 * KIB, "sha256"],
  ] as const)("blocks of %i, %s", async (blockBytes, digestKind) => {
    const image = createMemoryImage(5 * MIB + 12_345);
    await fill(image, 0, 3 * MIB);
    await kit.send(image, { blockBytes, digestKind });
    await expectEqual(image);
    await fill(image, 1_500_000, 5_000);
    const report = await kit.send(image);
    expect(report.blockBytes).toBe(blockBytes);
    expect(report.funnel.changedBytes).toBe(2 * 4_096);
    await expectEqual(image);
    await expect(kit.send(image, { blockBytes: 32 * KIB })).rejects.toMatchObject({ code: "block-size-differs" });
  });

  test("content rewritten as it was costs nothing (C-43)", async () => {
    const image = createMemoryImage(4 * MIB);
    await fill(image, 0, 4 * MIB);
    await kit.send(image);
    const same = createMemoryImage(4 * MIB);
    await same.write(await contentOf(image), 0);
    const report = await kit.send(same);
    expect(report.funnel).toMatchObject({ changedBytes: 0, shippedBytes: 0 });
  });

  test("a disk that grew; one that shrank is refused and kept", async () => {
    const small = createMemoryImage(2 * MIB + 100);
    await fill(small, 0, 2 * MIB + 100);
    await kit.send(small);
    const large = createMemoryImage(3 * MIB + 700);
    await large.write(await contentOf(small), 0);
    await fill(large, 3 * MIB, 700);
    await kit.send(large);
    await expectEqual(large);
    await expect(kit.send(small)).rejects.toMatchObject({ code: "size-shrunk" });
    await expectEqual(large);
    // Zeros alone: only the size differs, and that is a change.
    const zeros = createMemoryImage(40 * MIB + 1);
    await zeros.write(await contentOf(large), 0);
    expect(await kit.send(zeros, { skipEmpty: true })).toMatchObject({ created: true, point: 3 });
    await expectEqual(zeros);
    await fill(zeros, 39 * MIB, 100);
    await kit.send(zeros);
    await expectEqual(zeros);
  });

  test("another image under a used name (C-64)", async () => {
    const image = createMemoryImage(4 * MIB);
    await fill(image, 0, 4 * MIB);
    await kit.send(image);
    const other = createMemoryImage(4 * MIB);
    await fill(other, 0, 4 * MIB);
    const source = { reader: other, name: "other", identity: "image-2" };
    await expect(kit.send(other, { source })).rejects.toMatchObject({ code: "another-image", action: "never" });
    await expectEqual(image);
    // A larger one does not make the disk larger before it is refused.
    const larger = createMemoryImage(5 * MIB);
    await fill(larger, 0, 5 * MIB);
    const largerSource = { reader: larger, name: "larger", identity: "image-4" };
    await expect(kit.send(larger, { source: largerSource })).rejects.toMatchObject({ code: "another-image" });
    expect((await kit.send(image)).funnel.changedBytes).toBe(0);
    await expectEqual(image);
    await kit.send(other, { source, adopt: true });
    await expectEqual(other);
    // A newer state of the same disk under another name needs no word.
    await fill(other, 0, 2 * MIB);
    await kit.send(other, { source: { ...source, identity: "image-3" } });
    await expectEqual(other);
  });

  test("several connections", async () => {
    const image = createMemoryImage(9 * MIB);
    await fill(image, 0, 9 * MIB);
    await kit.send(image, { connections: 4 });
    await expectEqual(image);
  });
});

describe("connections that break", () => {
  test("at any byte, in either direction: the run goes on and ends with one point", { timeout: 120_000 }, async () => {
    let number = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.record({ toServer: fc.boolean(), bytes: fc.nat(3_000_000) }), { minLength: 1, maxLength: 4 }),
        async (cuts) => {
          const disk = `disk-${number++}`;
          const image = createMemoryImage(3 * MIB);
          await fill(image, 0, 2 * MIB);
          const report = await kit.send(image, {
            disk,
            attemptsMax: 20,
            onPair: (pair, attempt) => {
              const cut = cuts[attempt];
              if (cut !== undefined) (cut.toServer ? pair.toServer : pair.toClient).cutAfter(cut.bytes);
            },
          });
          expect(report.point).toBe(1);
          await expectEqual(image, disk);
        },
      ),
      { numRuns: 40 },
    );
  });

  test("a lost answer to the commit makes no second point (C-62)", async () => {
    const image = createMemoryImage(2 * MIB);
    await fill(image, 0, MIB);
    let answered = 0;
    await kit.send(image, { onPair: (pair) => void (answered = pair.toClient.delivered) });
    for (let back = 1; back < 400; back += 40) {
      await fill(image, 0, 64 * KIB);
      let pair: { readonly toClient: { readonly delivered: number } } | undefined;
      const probe = await kit.send(image, { onPair: (made) => void (pair = made) });
      answered = pair?.toClient.delivered ?? 0;
      await fill(image, 0, 64 * KIB);
      const report = await kit.send(image, {
        onPair: (made, attempt) => {
          if (attempt === 0) made.toClient.cutAfter(Math.max(1, answered - back));
        },
      });
      expect(report.point, `cut ${back} bytes before the end`).toBe(probe.point + 1);
      await expectEqual(image);
    }
  });

  test("C-62: fifty commits that are made and not heard of: each is known by its cycle, and is one point", async () => {
    expect(await kit.close()).toBe(true);
    let cut: (() => void) | undefined;
    const receiverStorage = (storage: Storage): Storage => ({
      ...methodsOf(storage),
      // The moment a point is there.
      async rename(from, to) {
        await storage.rename(from, to);
        if (/\/points\/[0-9]+\.json$/.test(to)) cut?.();
      },
    });
    kit = await PairKit.create({ receiverStorage });
    const image = createMemoryImage(4 * 64 * KIB);
    const cycles: string[] = [];
    for (let point = 1; point <= 50; point++) {
      await fill(image, (point % 4) * 64 * KIB, 4 * KIB);
      let cuts = 0;
      const report = await kit.send(image, {
        onPair: (pair, attempt) => {
          cut = (): void => {
            if (attempt > 0) return;
            cuts++;
            pair.toClient.cutAfter(0);
          };
        },
      });
      expect({ ...report, cuts }).toMatchObject({ point, attempts: 2, cuts: 1 });
      await expectEqual(image);
      const { points } = await kit.store.points("disk");
      cycles.push(points.at(-1)?.cycle ?? "");
      expect(points.map(({ cycle }) => cycle)).toEqual(cycles);
    }
    expect(new Set(cycles).size).toBe(50);
  });

  test("a changed byte of a payload never becomes content, and is asked for again", async () => {
    // Heads carry a checksum (test/wire); between the offsets lies the payload of the first data frame.
    for (let offset = 1_000; offset < 520_000; offset += 20_011) {
      const disk = `bent-${offset}`;
      const image = createMemoryImage(MIB);
      await fill(image, 0, 512 * KIB);
      const report = await kit.send(image, {
        disk,
        // The request for the block may arrive while the guard looks: between the last frame and the commit.
        source: { reader: image, name: "image", identity: "image-1", guard: slowGuard(offset % 7) },
        onPair: (pair, attempt) => {
          if (attempt === 0) pair.toServer.corruptAt(offset);
        },
      });
      expect(report).toMatchObject({ point: 1, attempts: 1 });
      expect(report.funnel.repeatedBlocks).toBe(1);
      await expectEqual(image, disk);
    }
  });
});

test("any sequence of changes and sends: the replica is the image", { timeout: 120_000 }, async () => {
  const size = 2 * MIB + 5_000;
  const range = fc.tuple(fc.nat(size - 1), fc.integer({ min: 1, max: 200_000 }));
  const step = fc.oneof(
    fc.record({ kind: fc.constant("write" as const), range }),
    fc.record({ kind: fc.constant("zero" as const), range }),
    fc.record({ kind: fc.constant("send" as const), range }),
  );
  let run = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), async (steps) => {
      const disk = `walk-${run++}`;
      const image = createMemoryImage(size);
      for (const {
        kind,
        range: [offset, length],
      } of [...steps, { kind: "send" as const, range: [0, 1] as [number, number] }]) {
        const end = Math.min(size, offset + length);
        if (kind === "write") await fill(image, offset, end - offset);
        else if (kind === "zero") await image.zero(offset, end - offset);
        else {
          await kit.send(image, { disk });
          await expectEqual(image, disk);
        }
      }
    }),
    { numRuns: 25 },
  );
});
