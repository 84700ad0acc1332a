/** The control socket of a tracker, without processes: what a client gets, and what ends its cut. */
import { expect, onTestFinished, test } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { trackWriter } from "../../src/library/tracked-writer.ts";
import { cutImages } from "../../src/track/tracked-image.ts";
import { randomBytes } from "../random.ts";
import { ControlKit } from "./control-kit.ts";

test.each([16 * KIB, 64 * KIB, MIB])(
  "blocks of %d bytes at the receiver are sent as they were, whatever the journal's",
  async (receiverBlockBytes) => {
    const kit = await ControlKit.create(
      { onTestFinished },
      { sizeBytes: 4 * MIB + 512, blockBytes: 16 * KIB, receiverBlockBytes },
    );
    const { image } = kit.tracked;
    expect(await kit.send()).toMatchObject({ reason: "initial", point: 1 });
    await image.write(randomBytes(512), MIB + 16 * KIB);
    let asItWas: Buffer = Buffer.alloc(0);
    const report = await kit.send(async () => {
      asItWas = await kit.bytes();
      await image.write(randomBytes(512), MIB);
      await image.write(randomBytes(512), MIB + 63 * KIB);
      await image.write(randomBytes(512), 3 * MIB);
    });
    expect(report).toMatchObject({ reason: "bitmap", point: 2 });
    expect(kit.pair.replica().equals(asItWas)).toBe(true);
    expect(await kit.send()).toMatchObject({ reason: "bitmap", point: 3 });
    expect(kit.pair.replica().equals(await kit.bytes())).toBe(true);
  },
);

test("a writer nobody knows whether it was used past its tracker: 1 % is audited once", async (t) => {
  const sizeBytes = 4 * MIB;
  const memory = createMemoryImage(sizeBytes);
  const kit = await ControlKit.create(t, {
    sizeBytes,
    async open(engine, path) {
      const open = () => trackWriter(memory, { engine, name: path, journal: `${path}.rbj` });
      const before = await open();
      const [cut] = await cutImages([before.image], { clock: systemClock, freeze: "dirty" });
      await cut?.retire();
      await before.close();
      return await open();
    },
  });
  await kit.tracked.image.write(randomBytes(MIB), 0);
  // All is compared with what the receiver has: nothing is audited.
  expect(await kit.send()).toMatchObject({ reason: "initial", audit: undefined });
  expect(await kit.send()).toMatchObject({ reason: "bitmap", audit: { missedBytes: 0 } });
  expect(await kit.send()).toMatchObject({ reason: "bitmap", audit: undefined });
});
