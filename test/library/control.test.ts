/** The control socket of a tracker, without processes: what a client gets, and what ends its cut. */
import { expect, onTestFinished, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
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
      asItWas = kit.image();
      await image.write(randomBytes(512), MIB);
      await image.write(randomBytes(512), MIB + 63 * KIB);
      await image.write(randomBytes(512), 3 * MIB);
    });
    expect(report).toMatchObject({ reason: "bitmap", point: 2 });
    expect(kit.pair.replica().equals(asItWas)).toBe(true);
    expect(await kit.send()).toMatchObject({ reason: "bitmap", point: 3 });
    expect(kit.pair.replica().equals(kit.image())).toBe(true);
  },
);
