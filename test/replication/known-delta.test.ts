/** A delta whose changes are known, scattered over very many pages of the table: what it asks and what it reads. */
import { closeSync, mkdtempSync, openSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { GIB, KIB, MIB } from "../../src/base/units.ts";
import type { BlockWriter } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createRawWriter } from "../../src/image/raw.ts";
import type { SendReport } from "../../src/replication/report.ts";
import type { LinkedPair } from "../../src/testing/linked-pair.ts";
import { DirtyBitmap } from "../../src/track/dirty-bitmap.ts";
import type { KnownState } from "../../src/track/known-state.ts";
import type { Message } from "../../src/wire/messages.ts";
import { randomBytes } from "../random.ts";
import { PairKit } from "./pair-kit.ts";

const blockBytes = 16 * KIB;
/** Pages of the table have 512 blocks: 8 MiB. */
const pageBytes = 8 * MIB;
const sizeBytes = 2 * GIB;
const pages = sizeBytes / pageBytes;

let kit: PairKit;
let folder: string;

beforeEach(async () => {
  kit = await PairKit.create();
  folder = mkdtempSync(join(tmpdir(), "replicate-known-"));
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  rmSync(folder, { recursive: true });
});

/** An image with its bitmap, sent whenever it is asked. */
class Source {
  readonly image: BlockWriter;
  /** What crossed the links since the last send began. */
  readonly sent: Message[] = [];
  /** Pages in each answer of the receiver. */
  readonly answered: number[] = [];
  onPair: (pair: LinkedPair, attempt: number) => void = () => undefined;
  grainBytes = blockBytes;
  #dirty = new DirtyBitmap({ sizeBytes, blockBytes });
  #known: KnownState | undefined;

  constructor(image: BlockWriter) {
    this.image = image;
  }

  async write(offset: number, length: number): Promise<void> {
    await this.image.write(randomBytes(length), offset);
    this.#dirty.setBytes(offset, length);
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.image.zero(offset, length);
    this.#dirty.setBytes(offset, length);
  }

  async send(cycle: string): Promise<SendReport> {
    this.sent.length = 0;
    this.answered.length = 0;
    const known = this.#known;
    const dirty = this.#dirty.freeze();
    this.#dirty = new DirtyBitmap({ sizeBytes, blockBytes });
    const changes = {
      ...{ cycle, dirty, isExact: true, complete: known === undefined, grainBytes: this.grainBytes },
      bases: known === undefined ? [] : [known.cycle],
      states: known === undefined ? [] : [known],
      keep: (state: KnownState): Promise<void> => {
        this.#known = state;
        return Promise.resolve();
      },
    };
    const report = await kit.send(this.image, {
      blockBytes,
      source: { reader: this.image, name: "image", identity: "image-1", changes },
      onPair: (pair, attempt) => {
        const { client, server } = pair;
        const [send, answer] = [client.send.bind(client), server.send.bind(server)];
        client.send = (message, payload) => {
          this.sent.push(message);
          return send(message, payload);
        };
        server.send = (message, payload) => {
          if (message.type === "blocks") this.answered.push(message.count);
          return answer(message, payload);
        };
        this.onPair(pair, attempt);
      },
    });
    await kit.idle();
    return report;
  }

  get questions(): number {
    return this.sent.filter(({ type }) => type === "ask-blocks").length;
  }
}

async function fileImage(): Promise<BlockWriter> {
  const { storage } = kit.sending;
  const file = await storage.open(join(folder, "image.raw"), { write: true, create: true });
  await file.truncate(sizeBytes);
  return createRawWriter(file, storage, { sizeBytes });
}

/** The replica in places: all of it would be gigabytes of zeros. */
async function expectReplica({ image }: Source, offsets: readonly number[], length: number): Promise<void> {
  const fd = openSync(join(kit.folder, "store/disks/disk/replica.raw"), "r");
  const [mine, theirs] = [Buffer.alloc(length), Buffer.alloc(length)];
  for (const offset of offsets) {
    await image.read(mine, offset);
    readSync(fd, theirs, 0, length, offset);
    expect(mine.equals(theirs), `at ${offset}`).toBe(true);
  }
  closeSync(fd);
}

/** One place in each page, not all at the same block of it. */
const places = Array.from({ length: pages }, (_unused, page) => page * pageBytes + (page % 500) * blockBytes);

test.each([
  ["a file, which lanes read", fileImage],
  ["a reader without runs", () => Promise.resolve(createMemoryImage(sizeBytes))],
])(
  "%s: dirt in every page is asked for with a few questions, and only what is dirty is read",
  async (_name, create) => {
    const source = new Source(await create());
    for (const place of places.filter((_place, page) => page % 4 !== 3)) await source.write(place, blockBytes);
    // One page without any zero, and dense: it is a group of its own.
    await source.write(100 * pageBytes, pageBytes);
    expect(await source.send("one")).toMatchObject({ reason: "initial", point: 1 });
    for (const [page, place] of places.entries()) {
      // Parts of content, content over zeros, and content that becomes zero; zeros stay zeros.
      if (page % 8 === 1) await source.zero(place, blockBytes);
      else await source.write(place + 4 * KIB, 100);
    }
    await source.write(100 * pageBytes, pageBytes);
    const report = await source.send("two");
    expect(report).toMatchObject({ reason: "bitmap", point: 2 });
    const dirtyBytes = (pages - 1) * blockBytes + pageBytes;
    // Every dirty block once, but for those that are zero.
    expect(report.funnel.readBytes).toBe(dirtyBytes - (pages / 8) * blockBytes);
    expect(report.funnel.zeroBlocks).toBe(pages / 8);
    // Three quarters of the pages have content at the receiver, 128 at most are one question; the dense page ends a group early.
    expect(source.questions).toBeGreaterThanOrEqual(2);
    expect(source.questions).toBeLessThanOrEqual(4);
    expect(Math.max(...source.answered)).toBe(64);
    expect(source.answered.reduce((sum, count) => sum + count, 0)).toBe((pages * 3) / 4);
    await expectReplica(source, places, blockBytes);
    await expectReplica(source, [100 * pageBytes], pageBytes);
    await source.image.close();
  },
);

test("a link that breaks between groups: the next session goes on with what the first left", async () => {
  const source = new Source(await fileImage());
  for (const place of places) await source.write(place, blockBytes);
  await source.send("one");
  for (const place of places) await source.write(place, blockBytes);
  source.onPair = (pair, attempt) => {
    if (attempt < 3) pair.toServer.cutAfter(1_200_000);
  };
  const report = await source.send("two");
  expect(report).toMatchObject({ reason: "bitmap", point: 2, attempts: 4 });
  await expectReplica(source, places, blockBytes);
  await source.image.close();
});

test("a session that goes on in the middle of the disk: what is asked together ascends, also where the scan comes round", async () => {
  const source = new Source(await fileImage());
  const some = places.slice(0, 200);
  for (const place of some) await source.write(place, blockBytes);
  await source.send("one");
  for (const place of some) await source.write(place, 100);
  source.onPair = ({ server }) => {
    const { send } = server;
    server.send = (message, payload) =>
      send.call(server, message.type === "opened" ? { ...message, resumeBlock: 150 * 512 } : message, payload);
  };
  expect(await source.send("two")).toMatchObject({ reason: "bitmap", point: 2, attempts: 1 });
  const firsts = source.sent.flatMap((message) => (message.type === "ask-blocks" ? [message.pages[0]] : []));
  expect(firsts[0]).toBe(150);
  expect(firsts).toContain(0);
  await expectReplica(source, some, blockBytes);
  await source.image.close();
});

test("digests of a page that do not fit its page digest are not believed", async () => {
  const source = new Source(await fileImage());
  for (const place of places) await source.write(place, blockBytes);
  await source.send("one");
  for (const place of places) await source.write(place, 100);
  let lies = 1;
  source.onPair = ({ server }) => {
    const { send } = server;
    server.send = (message, payload) => {
      if (message.type !== "blocks" || lies-- <= 0) return send.call(server, message, payload);
      const changed = Uint8Array.from(payload ?? []);
      changed[0] = (changed[0] ?? 0) ^ 1;
      return send.call(server, message, changed);
    };
  };
  const report = await source.send("two");
  expect(report).toMatchObject({ reason: "bitmap", point: 2, attempts: 2 });
  // Found before anything came of it, and not by the root.
  expect(source.sent.filter(({ type }) => type === "commit")).toHaveLength(1);
  await expectReplica(source, places, blockBytes);
  await source.image.close();
});

test("blocks of the receiver that are larger than what was kept around the dirty ones ask for a cut of everything", async () => {
  const source = new Source(createMemoryImage(sizeBytes));
  await source.write(0, blockBytes);
  await source.send("one");
  await source.write(0, 100);
  source.grainBytes = blockBytes / 2;
  await expect(source.send("two")).rejects.toMatchObject({ code: "base-mismatch" });
  await source.image.close();
});
