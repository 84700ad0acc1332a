/** Logs that are cut, flipped and made up: answers stay what they were, or somebody hears of it. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { crc32 } from "node:zlib";
import { ReplicationError } from "../../../src/base/errors.ts";
import type { ClosedLog } from "../../../src/replica/undo/entry.ts";
import { describeUndoLog } from "../../../src/replica/undo/describe.ts";
import { put32, seedOf, UNDO_PAGE_BYTES } from "../../../src/replica/undo/format.ts";
import { scanUndoLog } from "../../../src/replica/undo/scan.ts";
import { randomBytes } from "../../random.ts";
import { header, keyOf, type Known, LogBuilder, MemoryFile, openReader, pack, path, readAll } from "./kit.ts";

interface Sample {
  readonly log: LogBuilder;
  /** Bytes of the open log, without the footer. */
  readonly openBytes: Uint8Array;
  readonly closed: ClosedLog;
  /** Without the footer. */
  readonly batches: readonly number[];
  /** Known entries by key, and all keys in order of their batch. */
  readonly truth: ReadonlyMap<string, Known>;
}

/** An index run, a checkpoint and batches behind them; each batch names what is before the one before it as durable. */
function makeSample(): Sample {
  const log = new LogBuilder();
  const letters = Buffer.alloc(8192, "replica");
  let previous = UNDO_PAGE_BYTES;
  const durable = (): number => {
    const known = previous;
    previous = log.end;
    return known;
  };
  log.entries(
    [
      { block: 7, digest: 1, parts: [0], content: randomBytes(4096) },
      { block: 1, run: 4, digest: 0 },
    ],
    durable(),
  );
  log.index(durable());
  log.entries([{ block: 7, parts: [1, 3], content: letters, packed: pack(letters) ?? letters }], durable());
  log.checkpoint(8192, durable());
  log.entries([{ block: 600, digest: 2, damaged: true, parts: [2], content: randomBytes(4096) }], durable());
  log.entries([{ block: 601, digest: 4, parts: [0], content: randomBytes(4096) }], durable());
  const openBytes = log.bytes;
  const batches = [...log.batches];
  const truth = new Map(log.known.map((known) => [keyOf(known.entry), known]));
  return { log, openBytes, batches, truth, closed: log.footer() };
}

type Outcome = "same" | "damage" | "refused" | "shorter";

/** Opens and reads; throws what must never be. `shorter`: exactly the entries of the batches before some offset. */
function outcome(sample: Sample, bytes: Uint8Array, closed: ClosedLog | undefined): Outcome {
  const reader = guarded(() => openReader(new MemoryFile(bytes), closed === undefined ? {} : { closed }));
  if (reader === undefined) return "refused";
  const found = guarded(() => readAll(reader));
  if (found === undefined) return "refused";
  const { truth } = sample;
  let damage = reader.damage.length > 0;
  for (const { entry, content } of found) {
    const known = truth.get(keyOf(entry));
    if (known === undefined) throw new Error(`an entry that was never written: ${keyOf(entry)}`);
    if (content instanceof ReplicationError && content.code === "store-damaged") damage = true;
    else if (!(content instanceof Uint8Array && known.content.equals(content))) throw new Error("wrong content");
  }
  if (damage) return "damage";
  if (found.length === truth.size) return "same";
  const missing = new Set(truth.values());
  for (const { entry } of found) missing.delete(truth.get(keyOf(entry)) as Known);
  const lost = Math.min(...[...missing].map(({ offset }) => offset));
  if (lost < reader.sizeBytes || found.length + missing.size !== truth.size) throw new Error("an entry is missing");
  return "shorter";
}

/** Undefined: a ReplicationError. */
function guarded<T>(call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (error instanceof ReplicationError) return undefined;
    throw error;
  }
}

/** Calls `use` with each bit flipped of every byte that means something, and of some of the others. */
function eachFlip(sample: Sample, bytes: Uint8Array, use: (flipped: Uint8Array, at: number) => void): void {
  const copy = Uint8Array.from(bytes);
  const flip = (at: number, bit: number): void => {
    if (at >= copy.length) return;
    const kept = copy[at] ?? 0;
    copy[at] = kept ^ (1 << bit);
    use(copy, at);
    copy[at] = kept;
  };
  // All bits of headers, heads and the entries of index pages; then some of padding and contents.
  const pages = sample.log.runs.map(({ offset }) => offset + 4096);
  const starts = [0, ...sample.log.batches, ...pages];
  for (const start of starts) for (let bit = 0; bit < 100 * 8; bit++) flip(start + (bit >> 3), bit & 7);
  for (let at = 0; at < copy.length; at += 31) flip(at, at & 7);
}

describe("every flipped bit", () => {
  test("of an open log: the same, damage, or the end of what nothing proves to have been durable", () => {
    const sample = makeSample();
    // The last batch but one is named as durable by nothing, and the last one neither.
    const proven = sample.batches.at(-2) ?? 0;
    const counts = { same: 0, damage: 0, refused: 0, shorter: 0 };
    eachFlip(sample, sample.openBytes, (bytes, at) => {
      const found = outcome(sample, bytes, undefined);
      counts[found]++;
      if ((found === "shorter" && at < proven) || (found === "refused" && at >= 64)) throw new Error(`${found}: ${at}`);
    });
    expect(Math.min(...Object.values(counts))).toBeGreaterThan(300);
  });

  test("of a closed log: the same, damage or a refusal", () => {
    const sample = makeSample();
    const counts = { same: 0, damage: 0, refused: 0, shorter: 0 };
    eachFlip(sample, sample.log.bytes, (bytes) => {
      counts[outcome(sample, bytes, sample.closed)]++;
    });
    expect(counts.shorter).toBe(0);
    expect(Math.min(counts.same, counts.damage, counts.refused)).toBeGreaterThan(300);
  });

  test("recovery: the batch is the end, or damage, or good", () => {
    const sample = makeSample();
    const proven = sample.batches.at(-2) ?? 0;
    const counts = { good: 0, damage: 0, end: 0 };
    eachFlip(sample, sample.openBytes, (bytes, at) => {
      const scan = guarded(() => scanUndoLog({ path, lanes: new MemoryFile(bytes).lanes, fd: 3 }));
      if (scan === undefined) return;
      const stretches = [...scan.damage, ...scan.indexDamage];
      const kind = stretches.length > 0 ? "damage" : scan.goodEnd < bytes.length ? "end" : "good";
      counts[kind]++;
      const batch = sample.batches.findLast((offset) => offset <= at) ?? 0;
      const right = kind === "good" || (kind === "end" ? scan.goodEnd === batch && batch >= proven : batch < proven);
      if (!right || stretches.some(({ offset }) => offset !== batch)) throw new Error(`${kind}: ${at}`);
    });
    expect(Math.min(...Object.values(counts))).toBeGreaterThan(300);
  });
});

describe("a log cut at every byte", () => {
  test("open: the batches that are wholly there", () => {
    const sample = makeSample();
    const { openBytes, batches } = sample;
    const whole = (batches.at(-1) ?? 0) + 64 + 33 + 4096;
    for (let length = 0; length < openBytes.length; length += length % 4096 < 300 ? 1 : 7) {
      const bytes = openBytes.subarray(0, length);
      const found = outcome(sample, bytes, undefined);
      if (found !== (length < 64 ? "refused" : length < whole ? "shorter" : "same"))
        throw new Error(`${found}: ${length}`);
      if (length < 64 || length % 97 !== 0) continue;
      const { goodEnd, damage } = scanUndoLog({ path, lanes: new MemoryFile(bytes).lanes, fd: 3 });
      expect(damage).toEqual([]);
      expect(goodEnd).toBe(openReader(new MemoryFile(bytes)).sizeBytes);
    }
  });

  test("closed: refused, unless only the footer is cut", () => {
    const sample = makeSample();
    const { bytes } = sample.log;
    for (let length = 0; length < bytes.length; length++) {
      const found = outcome(sample, bytes.subarray(0, length), sample.closed);
      if (found !== (length < sample.closed.footerOffset ? "refused" : "same")) throw new Error(`${found}: ${length}`);
    }
  });
});

describe("made up", () => {
  const use = (bytes: Uint8Array): void => {
    const file = new MemoryFile(bytes);
    const log = { path, lanes: file.lanes, fd: 3 };
    guarded(() => readAll(openReader(file)));
    const closed = { sizeBytes: bytes.length, footerOffset: Math.max(0, bytes.length - 4096), footerChecksum: 0 };
    guarded(() => readAll(openReader(file, { closed })));
    guarded(() => scanUndoLog(log));
    guarded(() => describeUndoLog(log, { contents: true }));
  };

  test("bytes", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 20_000 }), use), { numRuns: 200 });
  });

  test("bytes behind a good header, with batches whose checksums are right", () => {
    const field = fc.oneof(
      fc.constantFrom(0, 1, 8, 33, 41, 66, 4096, 8192, 2 ** 32 - 1, 2 ** 22, 2 ** 26),
      fc.nat(2 ** 32 - 1),
    );
    const batch = fc.record({
      fields: fc.array(field, { minLength: 10, maxLength: 10 }),
      kind: fc.integer({ min: 0, max: 5 }),
      body: fc.uint8Array({ minLength: 0, maxLength: 300 }),
      tame: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(batch, { minLength: 1, maxLength: 6 }), (batches) => {
        const { id } = header;
        const bytes = new Uint8Array(4096 * (batches.length + 2));
        bytes.set(new LogBuilder().bytes.subarray(0, 64));
        batches.forEach(({ fields, kind, body, tame }, index) => {
          const at = 4096 * (index + 1);
          const head = bytes.subarray(at, at + 64);
          fields.forEach((value, number) => put32(head, 16 + 4 * number, value));
          head.set(Buffer.from("rplubtch"));
          head.set(id, 8);
          put32(head, 16, at);
          put32(head, 20, 0);
          put32(head, 32, kind);
          put32(head, 36, 0);
          put32(head, 52, 0);
          if (tame) {
            // Lengths a batch of this kind may have: what is in it is read.
            const count = kind === 1 ? 1 + ((fields[0] ?? 0) % 4) : 1;
            put32(head, 24, (fields[1] ?? 0) % (at + 1));
            put32(head, 28, 0);
            put32(head, 40, count);
            put32(head, 44, kind === 1 ? 33 * count : kind === 4 ? 48 : 8);
            put32(head, 48, kind === 3 ? 4096 : kind === 1 ? (fields[2] ?? 0) % 9000 : 0);
          }
          bytes.set(body, at + 64);
          const headsBytes = Math.min(Buffer.from(head).readUInt32LE(44), bytes.length - at - 64);
          put32(head, 56, crc32(bytes.subarray(at + 64, at + 64 + headsBytes), seedOf(id)));
          put32(head, 60, crc32(head.subarray(0, 60), seedOf(id)));
        });
        use(bytes);
      }),
      { numRuns: 400 },
    );
  });
});
