/** Flipped bits in a larger store, drawn by chance: some of each kind of place of each file. Every bit of a small store: corruption.long.ts. */
import { expect, test } from "vitest";
import { drawAims, expectFound, lookAtAll, makeLargeStore } from "./large-corruption.ts";
import { flip } from "./corruption.ts";

/** In the name of the test, so that a failure tells it; `REPLICATE_TEST_SEED` repeats it. */
const seed = Number(process.env["REPLICATE_TEST_SEED"]) || Date.now() & 0xffff;

for (const format of ["raw", "vhdx"] as const) {
  test(`${format}: a flipped bit anywhere costs what it is in, or an error names the file, seed ${String(seed)}`, async () => {
    const large = await makeLargeStore(format, seed);
    const good = { refused: [] };
    const { lost, points, unreadable } = await lookAtAll(large);
    expect({ lost, unreadable }).toEqual({ lost: undefined, unreadable: [] });
    expect([...points.values()]).toEqual([good, good, good, good, good]);
    const aims = [...drawAims(large, 3)];
    const places = new Set(aims.map(({ what }) => what));
    // The list of the held point is one log, which has a name of its own.
    for (const what of [/^0000000001\.\d+\.undo: content$/, /^0000000008\.undo: entries$/, /^digests: blocks$/])
      expect([...places].some((place) => what.test(place))).toBe(true);
    let damaged = 0;
    for (const { what, flip: one } of aims) {
      flip(large, one);
      try {
        const found = await lookAtAll(large);
        expectFound(large, one, found);
        const told = [...found.points.values()].some((point) => "lost" in point || point.refused.length > 0);
        if (found.lost !== undefined || told) damaged++;
      } catch (error) {
        throw new Error(`${what}: bit ${one.bit} of the byte at ${one.at}`, { cause: error });
      }
      large.machine.poke(one.path, (large.files.get(one.path) ?? Buffer.alloc(0)).subarray(one.at, one.at + 1), one.at);
    }
    process.stdout.write(
      `${format}: ${aims.length} bits in ${places.size} kinds of places, ${damaged} of them cost something\n`,
    );
    expect(damaged).toBeGreaterThan(aims.length / 6);
  });
}
