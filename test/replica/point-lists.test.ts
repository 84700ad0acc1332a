/** Records whose lists name the wrong logs: who needs them is refused, or told by the root; who does not is served. Reading changes nothing. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { KIB } from "../../src/base/units.ts";
import { restorePoint, verifyPoint } from "../../src/index.ts";
import { decodePoint, type NamedLog, pointFormat } from "../../src/replica/points/point.ts";
import { encodeState, type StateRecord } from "../../src/replica/state-file.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { hastyClock } from "../replication/pair-kit.ts";
import { Changing, PointKit, sha, whileChanged } from "./point-kit.ts";

const block = 16 * KIB;
const points = [1, 2, 4, 5, 6];
const storage = createNodeStorage();
let kit: PointKit;

/** Five points, of which the second has two logs: point 3 was removed. Each delta changes a block of its own, the newer ones also the same one. */
beforeEach(async () => {
  kit = await PointKit.create({ blockBytes: block });
  const disk = new Changing(40 * block).write(0, 40 * block);
  for (let point = 1; point <= 6; point++) {
    if (point > 3) disk.write(20 * block, block);
    await kit.commit(disk.write(point * block, block).content);
  }
  const { store } = kit.pair;
  for (const point of [1, 2]) await store.hold("disk", point, { owner: "test", until: undefined });
  await store.prune("disk", { keep: "last=3" });
  kit.contents.delete(3);
  expect((await store.points("disk")).points.map(({ point }) => point)).toEqual(points);
  await kit.expectAll();
});

afterEach(async () => {
  await kit.expectAll();
  expect(await kit.close(), "every slot is back").toBe(true);
});

function recordPath(point: number): string {
  return join(kit.points, `${point.toString().padStart(10, "0")}.json`);
}

function read(point: number) {
  return decodePoint(recordPath(point), readFileSync(recordPath(point)));
}

/** The logs of a point, whether its record lists them or not. */
function logsOf(point: number): readonly NamedLog[] {
  const { closed } = read(points[points.indexOf(point) + 1] ?? 0);
  if (closed === undefined) throw new Error("each commit closes a log");
  return read(point).logs ?? [{ name: `${point.toString().padStart(10, "0")}.undo`, closed }];
}

/** A record with another list, and with the checksum for it. */
function listing(logs: readonly NamedLog[]): (bytes: Buffer) => Buffer {
  return (bytes) => {
    const { content } = JSON.parse(bytes.toString()) as { readonly content: StateRecord };
    const listed = logs.map(({ name, closed: { sizeBytes, footerOffset, footerChecksum } }) => {
      return { name, sizeBytes, footerOffset, footerChecksum };
    });
    return Buffer.from(encodeState(pointFormat, { ...content, logs: listed }));
  };
}

/** Content and times of everything but locks, which readers make. */
function everything(): readonly (readonly [name: string, content: string, changed: bigint])[] {
  return [kit.path(), kit.points].flatMap((folder) =>
    readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isFile() && !entry.name.endsWith(".lock"))
      .map(({ name }) => {
        const path = join(folder, name);
        return [path, sha(readFileSync(path)), statSync(path, { bigint: true }).ctimeNs] as const;
      }),
  );
}

const engine = { storage, clock: hastyClock };

function verify(point: number) {
  return verifyPoint(kit.pair.store, { engine, disk: "disk", point });
}

/** Every way to read. `blamed`: of each point that is refused the file its error names; all others are whole. */
async function expectRefused(blamed: Readonly<Record<number, string>>, why: RegExp): Promise<void> {
  const before = everything();
  for (const point of points) {
    const file = blamed[point];
    if (file === undefined) {
      await kit.expectPoint(point);
      expect(await verify(point)).toMatchObject({ good: true });
      continue;
    }
    for (const tried of [() => kit.open(point), () => verify(point)]) {
      await expect(tried()).rejects.toMatchObject({ code: "store-damaged", message: expect.stringMatching(why) });
      await expect(tried()).rejects.toThrow(file);
    }
  }
  expect(everything()).toEqual(before);
}

test("C-67: two points that name each other's logs", async () => {
  const [second, fourth] = [logsOf(2), logsOf(4)];
  await whileChanged(recordPath(2), listing(fourth), () =>
    whileChanged(recordPath(4), listing(second), async () => {
      // Which logs lead to point 1 is not known either.
      await expectRefused(
        { 1: recordPath(2), 2: recordPath(2), 4: recordPath(4) },
        /"logs" names "000000000[24]\.undo"/,
      );
      const { unreadable } = await kit.pair.store.points("disk");
      expect(unreadable.map(({ point }) => point)).toEqual([2, 4]);
      // Nor which logs nobody needs: nothing goes.
      const logs = readdirSync(kit.points).filter((name) => name.endsWith(".undo"));
      await kit.pair.store.prune("disk", { keep: "last=1" });
      expect(await kit.pair.store.compact("disk")).toEqual([]);
      expect(readdirSync(kit.points).filter((name) => name.endsWith(".undo"))).toEqual(logs);
    }),
  );
});

test.each([
  [
    "its logs in another order",
    () => [...logsOf(2)].reverse(),
    /"logs" names "0000000003.undo" where a log of point 2/,
  ],
  [
    "a log of an older point",
    () => [...logsOf(2), ...logsOf(1)],
    /"logs" names "0000000001.undo" where a log of point 2/,
  ],
  ["only the log of another", () => logsOf(5), /"logs" names "0000000005.undo" where a log of point 2/],
] as const)("C-67: an edited list: %s", async (_name, logs, why) => {
  await whileChanged(recordPath(2), listing(logs()), async () => {
    await expectRefused({ 1: recordPath(2), 2: recordPath(2) }, why);
  });
});

test("C-67: an edited list whose checksum nobody made anew", async () => {
  const edit = (bytes: Buffer): Buffer => Buffer.from(bytes.toString().replace("0000000003.undo", "0000000004.undo"));
  await whileChanged(recordPath(2), edit, async () => {
    await expectRefused({ 1: recordPath(2), 2: recordPath(2) }, /checksum does not match/);
  });
});

test("C-67: an edited list that names a log that is not there", async () => {
  const [own, ...others] = logsOf(2);
  const [third] = others;
  if (own === undefined || third === undefined) throw new Error("point 3 left its log to point 2");
  const gone = join(kit.points, "0000000003.9.undo");
  await whileChanged(recordPath(2), listing([own, { ...third, name: "0000000003.9.undo" }]), async () => {
    await expectRefused({ 1: gone, 2: gone }, /it is missing, and point [12] cannot be read without it/);
  });
});

/** What no record shows by itself: blocks of point 3, or of a point that is there, in the place of point 2's. */
test.each([
  ["lacks a log", () => logsOf(2).slice(0, 1)],
  ["names the log of a newer point too early", () => [...logsOf(2).slice(0, 1), ...logsOf(5), ...logsOf(2).slice(1)]],
] as const)("C-67: an edited list that %s: the root tells, and nothing is restored", async (_name, logs) => {
  await whileChanged(recordPath(2), listing(logs()), async () => {
    const before = everything();
    for (const point of points) {
      const touched = point <= 2;
      expect(await verify(point)).toMatchObject({ point, good: !touched, rootMatches: !touched });
      const target = join(kit.pair.folder, `restored-${point}`);
      const restored = restorePoint(kit.pair.store, { engine, disk: "disk", point, target });
      if (touched)
        await expect(restored).rejects.toMatchObject({ code: "store-damaged", details: { disk: "disk", point } });
      else expect(sha(readFileSync((await restored, target)))).toBe(sha(kit.content(point)));
      expect(readdirSync(kit.pair.folder).includes(`restored-${point}`)).toBe(!touched);
    }
    expect(everything()).toEqual(before);
  });
});
