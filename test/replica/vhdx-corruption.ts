/** A store with a VHDX replica in which one bit of that file is not what it was: nothing wrong is served, and nothing wrong gets into the next point. The same in both tiers. */
import { beforeAll, describe, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { type Flip, flip, look, makeSmallStore, type SmallStore, tryGoingOn } from "./corruption.ts";
import { diskName, storePath } from "./simulated-store.ts";

const payloadBlockBytes = 32 * MIB;
const replica = { format: "vhdx", payloadBlockBytes } as const;
const path = `${storePath}/disks/${diskName}/replica.vhdx`;

/** Where the file has something, and how many bytes of it: after docs/formats.md, "VHDX images". */
export const structures: Readonly<Record<string, readonly [at: number, length: number]>> = {
  "file identifier": [0, 40],
  "header 1": [64 * KIB, 80],
  "header 2": [128 * KIB, 80],
  "region table 1": [192 * KIB, 80],
  "region table 2": [256 * KIB, 80],
  "the log": [MIB, 4 * KIB + 100],
  "metadata table": [2 * MIB, 200],
  "metadata items": [2 * MIB + 64 * KIB, 48],
  "the BAT": [3 * MIB, 32],
};

/** One bit of each `step`th byte. */
function* flipsIn([from, length]: readonly [at: number, length: number], step: number): Generator<Flip> {
  for (let at = from; at < from + length; at += step) yield { path, at, bit: (at * 5 + 3) & 7 };
}

/** Every `apart`th bit of what structures there are, and of fewer others. */
export function vhdxCorruptionTests(apart: number): void {
  for (const open of [false, true]) {
    describe(open ? "with a delta laid aside" : "with nothing under way", () => {
      let small: SmallStore;
      let content: readonly [at: number, length: number];

      beforeAll(async () => {
        small = await makeSmallStore(open, replica);
        const good = { refused: [] };
        expect(await look(small.machine)).toEqual({ lost: undefined, unreadable: [], points: [good, good, good] });
        const { length } = small.files.get(path) ?? Buffer.alloc(0);
        content = [length - payloadBlockBytes, 112 * KIB];
      });

      /** Looks with each bit flipped; throws when something wrong is served. */
      async function tryAll(flips: Iterable<Flip>): Promise<Readonly<Record<"right" | "refused" | "lost", number>>> {
        const counts = { right: 0, refused: 0, lost: 0 };
        for (const one of flips) {
          flip(small, one);
          try {
            const { lost, points, unreadable } = await look(small.machine);
            expect(unreadable).toEqual([]);
            // The replica's file alone is damaged: the disk is there, and its points are listed.
            expect(lost).toBeUndefined();
            if (points.some((point) => "lost" in point)) {
              counts.lost++;
              for (const point of points) if ("lost" in point) expect(point.lost.message).toContain(path);
            } else if (points.some((point) => "refused" in point && point.refused.length > 0)) counts.refused++;
            else counts.right++;
          } catch (error) {
            throw new Error(`bit ${one.bit} of the byte at ${one.at}`, { cause: error });
          }
          small.machine.poke(path, (small.files.get(path) ?? Buffer.alloc(0)).subarray(one.at, one.at + 1), one.at);
        }
        return counts;
      }

      test.each(Object.keys(structures))("a flipped bit of %s is harmless, or told", async (name) => {
        const counts = await tryAll(flipsIn(structures[name] ?? [0, 0], name === "the log" ? 41 * apart : apart));
        expect(counts.right + counts.refused + counts.lost).toBeGreaterThan(30 / apart);
        // Of what there is twice the other one is used.
        if (/header|region table|the log/.test(name)) expect(counts).toMatchObject({ refused: 0, lost: 0 });
        if (name === "the BAT") expect(counts.refused).toBeGreaterThan(0);
      });

      test("a flipped bit of content costs its block", async () => {
        const counts = await tryAll(flipsIn(content, 331 * apart));
        expect(counts.lost).toBe(0);
        expect(counts.refused).toBeGreaterThan(60 / apart);
      });

      test("a session over a flipped bit goes on right, or is refused", async () => {
        const sums = { refused: 0, committed: 0 };
        for (const [name, place] of [...Object.entries(structures), ["content", content] as const]) {
          const step = apart * (name === "content" ? 3_331 : name === "the log" ? 337 : 7);
          const counts = await tryGoingOn(open, flipsIn(place, step), replica);
          sums.refused += counts.refused;
          sums.committed += counts.committed;
        }
        expect(sums.refused).toBeGreaterThan(2);
        expect(sums.committed).toBeGreaterThan(sums.refused);
      });
    });
  }
}
