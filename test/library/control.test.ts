/** The control socket of a tracker, without processes: what a client gets, and what ends its cut. */
import { existsSync } from "node:fs";
import { expect, onTestFinished, test } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import { ReplicationError } from "../../src/base/errors.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { CUT_IDLE_MILLIS } from "../../src/library/control/server.ts";
import { trackWriter } from "../../src/library/tracked-writer.ts";
import { openNbdReader } from "../../src/nbd/client.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { cutImages, type ImageCut } from "../../src/track/tracked-image.ts";
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

/** The last cut of the image. */
function cutsOf({ tracked: { image } }: ControlKit): { last: ImageCut | undefined } {
  const cuts: { last: ImageCut | undefined } = { last: undefined };
  const freeze = image.freeze.bind(image);
  image.freeze = (...how) => (cuts.last = freeze(...how));
  return cuts;
}

test("a cut that is lost ends at once, and its turn is another's; its client hears why until it asks for the next", async (t) => {
  const kit = await ControlKit.create(t, { sizeBytes: MIB });
  const cuts = cutsOf(kit);
  const client = await kit.connect();
  const { socket, disks } = await client.cut([]);
  const next = kit.turn.enter();
  await client.check();
  cuts.last?.view.lose(new ReplicationError("cut-abandoned", "no room"));
  await next;
  expect(existsSync(socket)).toBe(false);
  const { dirty } = kit.tracked.image.journal;
  expect(dirty.count).toBe(dirty.blocks);
  await expect(client.check()).rejects.toMatchObject({ code: "cut-abandoned", message: "no room" });
  await expect(client.retire(disks.map(({ cycle }) => cycle))).rejects.toMatchObject({ code: "cut-abandoned" });
  expect(kit.tracked.image.journal.base).toBeUndefined();
  kit.turn.leave();
  await client.cut([]);
  await client.check();
  client.close();
  // A send whose cut is lost in the middle says so, and the next one has everything.
  const send = kit.send(async () => cuts.last?.view.lose(new ReplicationError("cut-abandoned", "no room")));
  await expect(send).rejects.toMatchObject({ code: "cut-abandoned" });
  expect(await kit.send()).toMatchObject({ point: 1 });
});

test("a client that asks nothing and reads nothing for 10 minutes loses its cut when another waits", async (t) => {
  const clock = createFakeClock();
  const kit = await ControlKit.create(t, { sizeBytes: MIB, clock });
  const client = await kit.connect();
  const { socket, disks } = await client.cut([]);
  clock.advance(3 * CUT_IDLE_MILLIS);
  await client.check();
  let entered = false;
  const next = kit.turn.enter().then(() => {
    entered = true;
  });
  const almost = CUT_IDLE_MILLIS - 1;
  clock.advance(almost);
  const reader = await openNbdReader({
    address: { tls: false, place: { kind: "unix", path: socket }, exportName: disks[0]?.name ?? "" },
  });
  await reader.read(new Uint8Array(512), 0);
  clock.advance(almost);
  await client.check();
  clock.advance(almost);
  await client.check();
  const told = (): number => kit.log.at("warn").filter((line) => line.includes("its cut is given up")).length;
  expect([entered, told()]).toEqual([false, 0]);
  // Whoever looks does so each minute.
  clock.advance(CUT_IDLE_MILLIS + 60_000);
  await next;
  expect(told()).toBe(1);
  await expect(client.check()).rejects.toMatchObject({ code: "cut-abandoned" });
  kit.turn.leave();
  await reader.close();
  client.close();
});
