/** A link that is slow and long: everything arrives late and bit by bit, and what is committed is the image all the same. */
import { expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { LinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { expectEqual } from "./checks.ts";
import { PairKit } from "./pair-kit.ts";

test("a copy and a delta over a slow, delayed link come out equal, at one attempt each", async (t) => {
  const kit = await PairKit.create();
  t.onTestFinished(async () => {
    expect(await kit.close(), "every slot is back").toBe(true);
  });
  const pairs: LinkedPair[] = [];
  const onPair = (pair: LinkedPair): void => {
    pairs.push(pair);
    for (const direction of [pair.toServer, pair.toClient]) {
      direction.delay(200);
      direction.slow(MIB);
    }
  };
  const image = createMemoryImage(6 * MIB + 4 * KIB);
  await image.write(randomBytes(3 * MIB), 2 * MIB);
  expect(await kit.send(image, { onPair })).toMatchObject({ point: 1, attempts: 1 });
  await image.write(randomBytes(4 * KIB), 5 * MIB);
  await image.write(new Uint8Array(64 * KIB), 3 * MIB);
  expect(await kit.send(image, { onPair })).toMatchObject({ point: 2, attempts: 1, reason: "scan" });
  await kit.idle();
  expect(pairs.length).toBe(2);
  expect(pairs[0]?.toServer.delivered).toBeGreaterThan(3 * MIB);
  await expectEqual(kit, image);
});
