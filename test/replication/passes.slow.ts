/** An image in use that is too large to be cut at once: sent as it is, again and again, and cut at the end. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { randomBytes } from "../random.ts";
import { watchRejections } from "./checks.ts";
import { PairKit } from "./pair-kit.ts";
import { filled, sizeBytes, Tracker } from "./tracker-kit.ts";

let kit: PairKit;
const rejections = watchRejections();

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

/** A tracker with nowhere to keep old content, of which `data` MiB are written. */
async function started(passBytes: number, data = 40): Promise<Tracker> {
  const tracker = new Tracker(kit);
  tracker.passBytes = passBytes;
  await tracker.start(64 * KIB, 0);
  for (let at = 0; at < data; at += 4) await tracker.write(at * MIB, 4 * MIB);
  return tracker;
}

/** Has the guest do something at each `nth` read of the image in a pass, `times` times. */
function inPasses(tracker: Tracker, nth: number, times: number, act: (time: number) => Promise<void>): void {
  const { memory, image } = tracker;
  const read = memory.read.bind(memory);
  const freeze = image.freeze.bind(image);
  let inPass = false;
  let reads = 0;
  let acted = 0;
  image.freeze = (what, extras) => {
    inPass = what === "nothing";
    return freeze(what, extras);
  };
  memory.read = async (target, offset) => {
    if (inPass && ++reads % nth === 0 && acted < times) await act(acted++);
    await read(target, offset);
  };
}

test("what is written while it is sent is sent by the next pass, and a first copy needs no room for old content", async () => {
  const tracker = await started(8 * MIB);
  inPasses(tracker, 3, 12, (time) => tracker.write(((time * 37) % 40) * MIB + 5_000, 100_000));
  const report = await tracker.cycle();
  expect(report).toMatchObject({ reason: "initial", point: 1, created: true });
  expect(report.passes).toBeGreaterThan(0);
  await tracker.expectReplica();
  await tracker.write(5 * MIB, 4_096);
  const next = await tracker.cycle();
  expect(next).toMatchObject({ reason: "bitmap", point: 2 });
  expect(next.passes).toBeUndefined();
  expect(next.funnel.readBytes).toBeLessThan(MIB);
  await tracker.expectReplica();
  await tracker.stop();
});

test("without passes such a guest costs the cut", async () => {
  const tracker = await started(sizeBytes);
  let writing: Promise<void> | undefined;
  tracker.onPair = () => {
    writing ??= tracker.write(39 * MIB, 4_096);
  };
  await expect(tracker.cycle()).rejects.toMatchObject({ code: "cut-abandoned" });
  await writing;
  await tracker.stop();
});

test("a large delta goes in passes too, over a base with content", async () => {
  const tracker = await filled(kit);
  await tracker.stop();
  tracker.passBytes = 8 * MIB;
  await tracker.start(64 * KIB, 0);
  for (let at = 0; at < 30; at++) await tracker.write(at * 3 * MIB, 700_000);
  // Blocks change between the look at them and their second reading: the receiver asks for them whole.
  inPasses(tracker, 2, 30, (time) => tracker.write(((time * 11) % 30) * 3 * MIB + 10_000, 20_000));
  const report = await tracker.cycle();
  expect(report).toMatchObject({ reason: "bitmap", point: 2 });
  expect(report.passes).toBeGreaterThan(0);
  await tracker.expectReplica();
  await tracker.stop();
});

test("a guest that rewrites all of it in each pass is cut all the same", async () => {
  const tracker = await started(4 * MIB, 12);
  await tracker.stop();
  await tracker.start();
  inPasses(tracker, 1, 100, (time) => tracker.write((time % 12) * MIB, MIB));
  const report = await tracker.cycle();
  expect(report.point).toBe(1);
  // The second found as much as the first had left.
  expect(report.passes).toBe(2);
  await tracker.expectReplica();
  await tracker.stop();
});

test("a link that breaks in a pass: it goes on", async () => {
  const tracker = await started(8 * MIB);
  let links = 0;
  tracker.onPair = (pair) => {
    if (++links < 4) pair.toServer.cutAfter(5_000_000 * links);
  };
  inPasses(tracker, 5, 6, (time) => tracker.write(((time * 37) % 40) * MIB + 5_000, 100_000));
  const report = await tracker.cycle();
  expect(report.attempts).toBeGreaterThan(3);
  await tracker.expectReplica();
  await tracker.stop();
});

test("a pass that fails leaves every block as dirty as it was", async () => {
  const tracker = await started(8 * MIB);
  const stop = new AbortController();
  inPasses(tracker, 8, 1, async () => {
    await tracker.write(3 * MIB, 100_000);
    stop.abort();
  });
  await expect(tracker.cycle(stop.signal)).rejects.toMatchObject({ code: "aborted" });
  expect(tracker.image.journal.dirty.count).toBe(tracker.image.journal.dirty.blocks);
  await tracker.stop();
  await tracker.start();
  const report = await tracker.cycle();
  expect(report.point).toBe(1);
  await tracker.expectReplica();
  await tracker.stop();
});

test("a receiver that has something else after a pass is compared anew", async () => {
  const tracker = await started(8 * MIB);
  const other = createMemoryImage(sizeBytes);
  await other.write(randomBytes(2 * MIB), 60 * MIB);
  let links = 0;
  tracker.onPair = async () => {
    // Before the cut is sent.
    if (++links !== 2) return;
    await kit.idle();
    await kit.send(other, { source: { reader: other, name: "vm", identity: "vm-1" } });
    await kit.idle();
  };
  const report = await tracker.cycle();
  expect(links).toBeGreaterThan(2);
  await tracker.expectReplica();
  expect(report.created).toBe(true);
  await tracker.stop();
});
