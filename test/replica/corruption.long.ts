/**
 * As corruption.slow.ts, and exhaustive: every bit of every record and head, and one bit of every byte of what is content or padding (where nothing is under
 * way, whose files are the same ones: of every seventh).
 */
import { describe, expect, test } from "vitest";
import { vhdxCorruptionTests } from "./vhdx-corruption.ts";
import { type Flip, flipsOf, makeSmallStore, tryFlips, tryGoingOn, tryJoining, trySuspicion } from "./corruption.ts";
import { placesOf } from "./undo-places.ts";

/** `sparse`: how many bytes apart where bytes are many and alike. */
function* flips(path: string, bytes: Uint8Array, sparse: number): Generator<Flip> {
  const placeOf = path.endsWith(".undo") ? placesOf(bytes) : undefined;
  const isBulk = (at: number): boolean => {
    if (placeOf === undefined) return bytes.length > 1024 && (path.endsWith(".raw") || at >= 128);
    const { kind } = placeOf(at);
    // Index pages are mostly unused.
    return kind === "content" || kind === "padding" || (kind === "index" && bytes[at] === 0);
  };
  yield* flipsOf(path, bytes, (at) => (isBulk(at) ? (at % sparse === 0 ? "one" : "none") : "all"));
}

for (const open of [false, true]) {
  const when = open ? "with a delta laid aside" : "with nothing under way";
  test(`each bit flipped, ${when}`, async () => {
    const small = await makeSmallStore(open);
    let tried = 0;
    for (const [path, bytes] of small.files) tried += await tryFlips(small, flips(path, bytes, open ? 1 : 7));
    expect(tried).toBeGreaterThan(open ? 250_000 : 30_000);
  });

  test(`a session over a flipped bit, ${when}`, async () => {
    const { files } = await makeSmallStore(open);
    for (const [path, bytes] of files) {
      const one = flipsOf(path, bytes, (at) => (at % (bytes.length > 1024 ? 97 : 5) === 0 ? "one" : "none"));
      const { committed, refused } = await tryGoingOn(open, one);
      expect(committed + refused).toBeGreaterThan(5);
    }
  });
}

test.each([false, true])("each bit flipped of what is on record of changes (found: %s)", async (found) => {
  expect(await trySuspicion(found, "all")).toBeGreaterThan(1_000);
});

test("a flipped bit in logs that are joined", async () => {
  const counts = await tryJoining((path, bytes) => {
    // Each takes a store of its own: a quarter of the bits.
    const some = Array.from(flips(path, bytes, 61)).filter(({ at, bit }) => (at + bit) % 4 === 0);
    return some.map((one) => [one]);
  });
  expect(counts.joined).toBeGreaterThan(500);
  expect(counts.left).toBeGreaterThan(100);
});

describe("a VHDX replica", () => {
  vhdxCorruptionTests(1);
});
