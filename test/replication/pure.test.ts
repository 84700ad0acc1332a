/** The parts of a session that are functions of values: plan, waits, rate, page answers, part ranges. */
import { countParts, hasPart } from "../../src/base/part-mask.ts";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { type Geometry, KIB, maskBytes, MIB, PART_BYTES, partsPerBlock } from "../../src/base/units.ts";
import type { BlockReader } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { backoffMillis } from "../../src/replication/backoff.ts";
import { BaseTable, encodePages } from "../../src/replication/base-table.ts";
import { differences, RecentPages } from "../../src/replication/page-work.ts";
import { differingParts, frameEnd, readParts, stretchesOf } from "../../src/replication/part-ranges.ts";
import { planSession } from "../../src/replication/plan.ts";
import { createRateLimit } from "../../src/replication/rate.ts";
import type { SenderSession } from "../../src/replication/sender-session.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import type { Open, Opened } from "../../src/wire/messages.ts";
import { randomBytes } from "../random.ts";

describe("plan", () => {
  const anyOpen: fc.Arbitrary<Open> = fc.record({
    type: fc.constant("open" as const),
    disk: fc.constant("disk"),
    sizeBytes: fc.constantFrom(0, 100, 200),
    explicit: fc.boolean(),
    source: fc.constant("a"),
    sourceName: fc.constant("a"),
    sectorBytes: fc.constant(512),
    cycle: fc.constantFrom("mine", "other"),
    allowShrink: fc.boolean(),
    adopt: fc.boolean(),
    blockBytes: fc.constantFrom(16 * KIB, 64 * KIB),
    digestKind: fc.constantFrom("xxh64" as const, "sha256" as const),
  });
  const anyOpened: fc.Arbitrary<Opened> = fc
    .record({
      committed: fc.boolean(),
      cycle: fc.constantFrom("mine", "other"),
      sizeBytes: fc.constantFrom(0, 100, 200),
      blockBytes: fc.constantFrom(16 * KIB, 64 * KIB),
      digestKind: fc.constantFrom("xxh64" as const, "sha256" as const),
      empty: fc.boolean(),
      anotherSource: fc.boolean(),
      interrupted: fc.constantFrom(true, false, undefined),
    })
    .map(({ committed, cycle, interrupted, ...rest }) => ({
      type: "opened" as const,
      fresh: !committed,
      ...(committed ? { point: 3, cycle, root: new Uint8Array(32) } : {}),
      ...(interrupted === undefined ? {} : { interrupted }),
      ...rest,
      resumeBlock: 0,
      generation: "g",
      term: 1,
      credit: 8,
      codecs: [],
    }));

  test("every pair of messages has one outcome, and it follows from the first rule that applies", () => {
    fc.assert(
      fc.property(anyOpen, anyOpened, fc.boolean(), (full, opened, bare) => {
        const { blockBytes: _block, digestKind: _kind, ...without } = full;
        const open: Open = bare ? without : full;
        let outcome: string;
        let plan: ReturnType<typeof planSession> | undefined;
        try {
          plan = planSession(open, opened);
          outcome = plan.kind;
        } catch (error) {
          expect(error).toBeInstanceOf(ReplicationError);
          outcome = (error as ReplicationError).code;
        }
        const insists = open.explicit && !bare;
        if (insists && open.blockBytes !== opened.blockBytes) expect(outcome).toBe("block-size-differs");
        else if (insists && open.digestKind !== opened.digestKind) expect(outcome).toBe("digest-kind-differs");
        else if (opened.cycle === open.cycle) expect(outcome).toBe("already-durable");
        else if (!opened.fresh && open.sizeBytes < opened.sizeBytes && !open.allowShrink) {
          expect(outcome).toBe("size-shrunk");
        } else {
          expect(plan).toEqual({
            kind: "compare",
            reason: opened.fresh
              ? opened.empty
                ? "initial"
                : "resume"
              : opened.interrupted === true
                ? "resume"
                : "scan",
            geometry: { sizeBytes: open.sizeBytes, blockBytes: opened.blockBytes, digestKind: opened.digestKind },
            sampleFirst: !opened.fresh && !opened.empty && opened.anotherSource && !open.adopt,
          });
        }
      }),
      { numRuns: 2_000 },
    );
  });
});

test("waits: 1, 2, 4, 8, 10, then 30 s each", () => {
  expect([1, 2, 3, 4, 5, 6, 7, 100].map((failures) => backoffMillis(failures) / 1000)).toEqual([
    1, 2, 4, 8, 10, 30, 30, 30,
  ]);
});

describe("rate", () => {
  const signal = new AbortController().signal;

  test("over a long run within 1 % of what was asked, and never more than a quarter of a second ahead", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 100_000, max: 200 * MIB }),
        fc.array(fc.integer({ min: 1, max: MIB }), { minLength: 50, maxLength: 100 }),
        fc.integer({ min: 1, max: 4 }),
        async (rate, frames, senders) => {
          const clock = createFakeClock();
          const limit = createRateLimit(clock, rate);
          const largest = Math.max(...frames);
          let passed = 0;
          let taken = 0;
          const take = async (): Promise<void> => {
            // Frames again and again, for at least 60 s worth of bytes.
            for (let index = 0; taken < rate * 60; index++) {
              const bytes = frames[index % frames.length] ?? 1;
              taken += bytes;
              await limit.take(() => bytes, signal);
              passed += bytes;
              expect(passed).toBeLessThanOrEqual(rate * (clock.monotonic() / 1000 + 0.25) + senders * largest);
            }
          };
          const all = Array.from({ length: senders }, take);
          let done = false;
          const ended = Promise.all(all).then(() => {
            done = true;
          });
          while (!done) {
            for (let job = 0; job < 50; job++) await Promise.resolve();
            const due = clock.nextAt;
            if (due !== undefined) clock.advance(due - clock.monotonic());
          }
          await ended;
          const seconds = clock.monotonic() / 1000 + 0.25;
          expect(Math.abs(passed / seconds / rate - 1)).toBeLessThan(0.01);
        },
      ),
      { numRuns: 5, interruptAfterTimeLimit: 5_000 },
    );
  });

  test("after a pause a quarter of a second is caught up, not the pause", async () => {
    const clock = createFakeClock();
    const limit = createRateLimit(clock, 1_000);
    clock.advance(60_000);
    await limit.take(() => 250, signal);
    let passed = false;
    const next = limit
      .take(() => 100, signal)
      .then(() => {
        passed = true;
      });
    await clock.run(99);
    expect(passed).toBe(false);
    await clock.run(1);
    expect(passed).toBe(true);
    await next;
  });

  test("what was sent without asking is waited for by the next, what was given up is not", async () => {
    const clock = createFakeClock();
    const limit = createRateLimit(clock, 1_000);
    await limit.take(() => 250, signal);
    limit.spent(() => 300);
    const stop = new AbortController();
    const givenUp = limit.take(() => 60_000, stop.signal).catch(() => undefined);
    stop.abort();
    await givenUp;
    let passed = false;
    const next = limit
      .take(() => 100, signal)
      .then(() => {
        passed = true;
      });
    await clock.run(399);
    expect(passed).toBe(false);
    await clock.run(1);
    expect(passed).toBe(true);
    await next;
  });

  test("stopping ends a wait; without a limit there is none", async () => {
    const clock = createFakeClock();
    const stop = new AbortController();
    const waiting = expect(createRateLimit(clock, 1).take(() => MIB, stop.signal)).rejects.toThrow("enough");
    stop.abort(new Error("enough"));
    await waiting;
    await createRateLimit(clock, undefined).take(() => 2 ** 40, signal);
    expect(clock.waiting).toBe(0);
  });
});

describe("page answers", () => {
  test("what is encoded is decoded, in as many pieces as it takes", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 20_000 }),
        fc.integer({ min: 0, max: 20_000 }),
        fc.integer({ min: 1, max: 50 }),
        async (pages, known, every) => {
          // Pages of xxh64 and 64 KiB blocks: 32 MiB each.
          const geometry: Geometry = { sizeBytes: pages * 32 * MIB, blockBytes: 64 * KIB, digestKind: "xxh64" };
          const held = Math.min(pages, known);
          const scratch = new Uint8Array(32);
          const digestOf = (page: number): Uint8Array | undefined => {
            if (page % every !== 0) return undefined;
            // One array for all: what the table gives is a view.
            new DataView(scratch.buffer).setUint32(0, page + 1);
            return scratch;
          };
          let asked = 0;
          const session = {
            askPages: (first: number, count: number) => {
              expect(count).toBeLessThanOrEqual(limits.pagesPerRequestMax);
              expect(first + count).toBeLessThanOrEqual(held);
              asked++;
              return Promise.resolve({ first, count, payload: encodePages(first, count, digestOf) });
            },
          } as unknown as SenderSession;
          const table = new BaseTable(session, geometry, { empty: false, sizeBytes: held * 32 * MIB });
          for (let page = 0; page < pages; page++) {
            const digest = await table.page(page);
            const expected = page < held && page % every === 0 ? page + 1 : 0;
            if (new DataView(digest.buffer, digest.byteOffset).getUint32(0) !== expected) expect(page).toBe("right");
          }
          expect(asked).toBe(Math.ceil(held / limits.pagesPerRequestMax));
        },
      ),
      { numRuns: 15 },
    );
  });

  test("an answer cut short or too long is refused", async () => {
    const geometry: Geometry = { sizeBytes: 64 * MIB, blockBytes: 64 * KIB, digestKind: "xxh64" };
    const whole = encodePages(0, 2, () => randomBytes(32));
    for (const payload of [
      whole.subarray(0, whole.length - 1),
      Buffer.concat([whole, Buffer.alloc(32)]),
      Buffer.of(3),
    ]) {
      const session = { askPages: () => Promise.resolve({ first: 0, count: 2, payload }) } as unknown as SenderSession;
      const table = new BaseTable(session, geometry, { empty: false, sizeBytes: geometry.sizeBytes });
      await expect(table.page(0)).rejects.toMatchObject({ code: "message-malformed" });
    }
  });
});

describe("parts", () => {
  const anyMask = (blockBytes: number): fc.Arbitrary<Uint8Array> =>
    fc
      .array(fc.boolean(), { minLength: partsPerBlock(blockBytes), maxLength: partsPerBlock(blockBytes) })
      .map((bits) => {
        const mask = new Uint8Array(maskBytes(blockBytes));
        for (const [part, set] of bits.entries()) if (set) mask[part >> 3] = (mask[part >> 3] ?? 0) | (1 << (part & 7));
        return mask;
      });

  test("masks name the parts whose digests differ; unknown blocks, and those with no part that differs, go whole", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(16 * KIB, 64 * KIB),
        fc.infiniteStream(fc.boolean()),
        fc.integer({ min: 1, max: 20 }),
        (blockBytes, coins, count) => {
          const coin = (): boolean => coins.next().value as boolean;
          const parts = partsPerBlock(blockBytes);
          const own = Array.from({ length: count }, () => randomBytes(parts * 4));
          const known = own.map(coin);
          const expected = own.map(() => Array.from({ length: parts }, coin));
          const bits = Buffer.alloc(Math.ceil(count / 8));
          const theirs: Buffer[] = [bits];
          for (const [index, mine] of own.entries()) {
            if (known[index] !== true) continue;
            bits[index >> 3] = (bits[index >> 3] ?? 0) | (1 << (index & 7));
            const digests = Buffer.from(mine);
            for (const [part, differs] of (expected[index] ?? []).entries()) {
              if (differs) digests[part * 4] = (digests[part * 4] ?? 0) ^ 1;
            }
            theirs.push(digests);
          }
          const mine = Buffer.concat(own);
          const { masks, counts } = differingParts(Buffer.concat(theirs), mine, count, blockBytes);
          const perMask = maskBytes(blockBytes);
          expect([masks.length, counts.length]).toEqual([count * perMask, count]);
          for (let index = 0; index < count; index++) {
            const mask = masks.subarray(index * perMask, (index + 1) * perMask);
            const wanted = expected[index] ?? [];
            const whole = known[index] !== true || !wanted.includes(true);
            expect(wanted.map((_differs, part) => hasPart(mask, part))).toEqual(
              whole ? wanted.map(() => true) : wanted,
            );
            expect(counts[index]).toBe(countParts(mask));
          }
          const longer = Buffer.concat([...theirs, Buffer.alloc(1)]);
          expect(() => differingParts(longer, mine, count, blockBytes)).toThrow(
            expect.objectContaining({ code: "message-malformed" }),
          );
        },
      ),
      { numRuns: 60 },
    );
  });

  test("a reader without runs: the parts named are read, one behind the other, padded at the end of the disk", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 6 * 16 * KIB }),
        fc.array(fc.tuple(fc.boolean(), anyMask(16 * KIB)), { minLength: 6, maxLength: 6 }),
        async (sizeBytes, choices) => {
          const geometry: Geometry = { sizeBytes, blockBytes: 16 * KIB, digestKind: "xxh64" };
          const image = createMemoryImage(sizeBytes);
          const content = randomBytes(sizeBytes);
          await image.write(content, 0);
          const count = Math.ceil(sizeBytes / (16 * KIB));
          const picked = choices.slice(0, count).flatMap(([take, mask], block) => (take ? [{ block, mask }] : []));
          const masks = Buffer.concat(picked.map(({ mask }) => mask));
          const blocks = picked.map(({ block }) => block);
          const target = Buffer.alloc(countParts(masks) * PART_BYTES, 0xee);
          await readParts(image, blocks, masks, geometry, target);
          const padded = Buffer.concat([content, Buffer.alloc(16 * KIB * count - sizeBytes)]);
          const expected = picked.flatMap(({ block, mask }) =>
            [0, 1, 2, 3]
              .filter((part) => hasPart(mask, part))
              .map((part) => padded.subarray(block * 16 * KIB + part * PART_BYTES).subarray(0, PART_BYTES)),
          );
          expect(Buffer.concat(expected).equals(target)).toBe(true);
        },
      ),
      { numRuns: 60 },
    );
  });

  test("blocks that follow one another are one stretch, with less than them at the end of the disk", () => {
    const geometry: Geometry = { sizeBytes: 9 * 16 * KIB + 512, blockBytes: 16 * KIB, digestKind: "xxh64" };
    const runs = (offset: number, length: number) => [{ kind: "file", fd: 4, offset, length } as const];
    const reader = { runs } as unknown as BlockReader;
    expect(stretchesOf(reader, [1, 2, 3, 5, 8, 9], geometry)?.stretches).toEqual([
      { blocks: 3, length: 3 * 16 * KIB, runs: runs(16 * KIB, 3 * 16 * KIB) },
      { blocks: 1, length: 16 * KIB, runs: runs(5 * 16 * KIB, 16 * KIB) },
      { blocks: 2, length: 16 * KIB + 512, runs: runs(8 * 16 * KIB, 16 * KIB + 512) },
    ]);
    expect(stretchesOf({} as BlockReader, [1], geometry)).toBeUndefined();
  });

  test("a frame takes as many blocks as fit, at least one", () => {
    const counts = new Uint16Array(40).fill(16);
    expect([0, 16, 35, 40].map((start) => frameEnd(counts, start))).toEqual([16, 32, 40, 40]);
    expect(frameEnd(Uint16Array.of(256, 256), 0)).toBe(1);
  });
});

test("blocks that differ, and pages kept a while", () => {
  const digests = Uint8Array.from([1, 1, 0, 2, 2, 3, 0, 9].flatMap((byte) => Array.from({ length: 8 }, () => byte)));
  const base = Uint8Array.from([1, 7, 7, 7, 7, 3, 0, 0].flatMap((byte) => Array.from({ length: 8 }, () => byte)));
  const work = { page: 2, first: 100, count: 8, digests, open: 1, cold: [] };
  expect(differences(work, base)).toEqual({
    zeros: [102],
    ranges: [
      { first: 101, end: 102 },
      { first: 103, end: 105 },
      { first: 107, end: 108 },
    ],
  });
  const recent = new RecentPages(2);
  for (const page of [5, 6, 5, 7]) recent.set(page, Uint8Array.of(page));
  expect([5, 6, 7].map((page) => recent.get(page)?.[0])).toEqual([undefined, 6, 7]);
});
