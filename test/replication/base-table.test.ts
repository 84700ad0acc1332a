/** Block digests as they come from a receiver: some pages an answer, one page behind the other. */
import { describe, expect, test } from "vitest";
import { type Geometry, KIB, pageBlocks } from "../../src/base/units.ts";
import { BaseTable } from "../../src/replication/base-table.ts";
import type { BlocksAnswer, SenderSession } from "../../src/replication/sender-session.ts";

const shape = { blockBytes: 64 * KIB, digestKind: "xxh64" } as const;
/** Three pages of 512 blocks and one of 100. */
const geometry: Geometry = { ...shape, sizeBytes: (3 * 512 + 100) * 64 * KIB };
/** Two pages and one of 20. */
const before: Geometry = { ...shape, sizeBytes: (2 * 512 + 20) * 64 * KIB };

/** Digests of a page: its number, in every byte. */
function digestsOf(page: number, of: Geometry): Uint8Array {
  return new Uint8Array(pageBlocks(of, page).count * 8).fill(page + 1);
}

function answer(of: Geometry, ...pages: number[]): BlocksAnswer {
  return { count: pages.length, payload: Buffer.concat(pages.map((page) => digestsOf(page, of))) };
}

function table(answers: readonly BlocksAnswer[], sizeBytes = geometry.sizeBytes): BaseTable {
  const session = { askBlocks: () => Promise.resolve(answers) } as unknown as SenderSession;
  return new BaseTable(session, geometry, { empty: false, sizeBytes });
}

describe("blocksOf", () => {
  test("pages of one answer and of several are told apart", async () => {
    const asked = [0, 1, 3];
    const expected = asked.map((page) => digestsOf(page, geometry));
    for (const answers of [
      [answer(geometry, 0, 1, 3)],
      [answer(geometry, 0), answer(geometry, 1, 3)],
      [answer(geometry, 0, 1), answer(geometry, 3)],
    ]) {
      const digests = await table(answers).blocksOf(asked);
      expect(digests.map((each) => Buffer.from(each))).toEqual(expected.map((each) => Buffer.from(each)));
    }
  });

  test.each<[string, Geometry]>([
    ["that has not begun to grow", before],
    ["that grew while the question was on its way", geometry],
  ])("a disk %s: blocks behind its old end are zeros, or what the receiver says", async (_name, of) => {
    const digests = await table([answer(of, 1, 2)], before.sizeBytes).blocksOf([1, 2]);
    const last = Buffer.alloc(4_096);
    last.set(digestsOf(2, of));
    expect(Buffer.from(digests[1] ?? []).equals(last)).toBe(true);
    expect(Buffer.from(digests[0] ?? []).equals(digestsOf(1, geometry))).toBe(true);
  });

  test("a page behind the old end, of a disk that has grown", async () => {
    for (const sizeBytes of [before.sizeBytes, 0]) {
      const digests = await table([answer(geometry, 3)], sizeBytes).blocksOf([3]);
      expect(Buffer.from(digests[0] ?? []).equals(digestsOf(3, geometry))).toBe(true);
    }
  });

  test.each<[string, BlocksAnswer]>([
    ["too few", { count: 2, payload: new Uint8Array(4_096 + 8) }],
    ["too many", { count: 2, payload: new Uint8Array(3 * 4_096) }],
    ["none of the last page", { count: 2, payload: new Uint8Array(4_096) }],
  ])("%s: malformed", async (_name, given) => {
    await expect(table([given]).blocksOf([0, 1])).rejects.toMatchObject({ code: "message-malformed" });
    await expect(table([given], before.sizeBytes).blocksOf([0, 1])).rejects.toMatchObject({
      code: "message-malformed",
    });
  });
});
