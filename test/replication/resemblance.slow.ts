/** Another image under a used name: what the sample says of images that are nearly the same, nearly empty, or quite others. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockWriter } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { randomBytes } from "../random.ts";
import { expectEqual, watchRejections } from "./checks.ts";
import { PairKit, type SendOptions } from "./pair-kit.ts";

let kit: PairKit;
const rejections = watchRejections();

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

const blockBytes = 16 * KIB;
const size = 24 * MIB;

async function imageWith(content: Buffer): Promise<BlockWriter> {
  const image = createMemoryImage(size);
  await image.write(content, 0);
  return image;
}

function as(reader: BlockWriter, more: SendOptions = {}): SendOptions {
  return { source: { reader, name: "another.raw", identity: "image-2" }, ...more };
}

test("a tenth of the blocks in common is enough; a hundredth is not", async () => {
  const content = randomBytes(20 * MIB);
  await kit.send(await imageWith(content), { blockBytes });
  for (const [share, allowed] of [
    [100, false],
    [10, true],
  ] as const) {
    const other = randomBytes(content.length);
    for (let block = 0; block < content.length / blockBytes; block += share) {
      content.copy(other, block * blockBytes, block * blockBytes, (block + 1) * blockBytes);
    }
    const image = await imageWith(other);
    const sending = kit.send(image, as(image));
    if (!allowed) {
      await expect(sending).rejects.toMatchObject({ code: "another-image", action: "never" });
      await expectEqual(kit, await imageWith(content));
    } else {
      await sending;
      await expectEqual(kit, image);
    }
  }
});

test("the error names image, disk and how many blocks were compared", async () => {
  await kit.send(await imageWith(randomBytes(10 * MIB)), { blockBytes });
  const other = await imageWith(randomBytes(10 * MIB));
  await expect(kit.send(other, as(other))).rejects.toMatchObject({
    message: expect.stringMatching(/disk disk .*another\.raw.*--adopt/s) as string,
    details: { compared: expect.any(Number) as number, equal: 0 },
  });
});

test.each([1, 7])("%i blocks with content say nothing: the image is taken", async (blocks) => {
  await kit.send(await imageWith(randomBytes(blocks * blockBytes)), { blockBytes });
  const other = await imageWith(randomBytes(3 * MIB));
  await kit.send(other, as(other));
  await expectEqual(kit, other);
});

test("an empty disk, and one without a point, take any image", async () => {
  await kit.send(createMemoryImage(size), { blockBytes });
  const other = await imageWith(randomBytes(3 * MIB));
  await kit.send(other, as(other));
  await expectEqual(kit, other);

  const first = await imageWith(randomBytes(3 * MIB));
  const onPair: SendOptions["onPair"] = (pair) => {
    pair.toServer.cutAfter(2 * MIB);
  };
  await expect(kit.send(first, { disk: "fresh", codec: "stored", onPair, attemptsMax: 1 })).rejects.toThrow();
  await kit.send(other, as(other, { disk: "fresh" }));
  await expectEqual(kit, other, "fresh");
});

test("the source comes back under its own identity without being asked", async () => {
  const image = await imageWith(randomBytes(10 * MIB));
  await kit.send(image, { blockBytes });
  await image.write(randomBytes(20 * MIB), 0);
  // Nothing in common, and the same source all the same: it was reinstalled, say.
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  await expectEqual(kit, image);
});

test("an identity may be any text, and is the same one each time", async () => {
  const first = await imageWith(randomBytes(10 * MIB));
  for (const identity of ["nightly export of web", "Büro", "x".repeat(4_000), "\u0000", ""]) {
    const source = { reader: first, name: "web.raw", identity };
    await kit.send(first, { blockBytes, source });
    // Under the same identity nobody asks whether it is another image.
    const second = await imageWith(randomBytes(10 * MIB));
    const sending = kit.send(second, { source: { ...source, reader: second } });
    await sending;
    await expectEqual(kit, second);
    await expect(kit.send(first, as(first))).rejects.toMatchObject({ code: "another-image" });
    await kit.send(first, { source });
  }
});
