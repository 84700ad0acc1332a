import { expect, test } from "vitest";
import { type DiskFindings, findDoubt } from "../../src/replica/doubt.ts";

const replica = { sizeBytes: 100, inode: "7", changedNanos: "1000" };
const session = { undo: 4, root: "aa", replica, resumeBlock: 3 };
const idle: DiskFindings = {
  tableTrouble: undefined,
  tableRoot: "bb",
  committedRoot: "bb",
  newest: 4,
  openLog: "none",
  session: undefined,
  suspicion: undefined,
  replica,
  replicaBytes: 100,
  replicaModified: 500n,
  committedModified: 500n,
  committedChanged: 1000n,
  heartbeat: undefined,
  boot: undefined,
  nowMillis: 0,
  sizeBytes: 100,
};
const laidAside: DiskFindings = { ...idle, tableRoot: "aa", openLog: "named", session };

const cases: readonly (readonly [string, DiskFindings, RegExp | undefined])[] = [
  ["idle", idle, undefined],
  ["idle, and a loss of power took its time back", { ...idle, replica: { ...replica, changedNanos: "1" } }, undefined],
  [
    "idle, and copied with its mtime",
    { ...idle, replica: { ...replica, inode: "8", changedNanos: "1001" } },
    /touched/,
  ],
  ["idle, with a record that a commit left", { ...idle, session }, undefined],
  ["laid aside", laidAside, undefined],
  ["no table", { ...idle, tableTrouble: "the table is missing", tableRoot: undefined }, /missing/],
  ["another table", { ...idle, tableRoot: "cc" }, /not that of point 4/],
  ["another table, no point", { ...idle, tableRoot: "cc", newest: 0 }, /empty disk/],
  ["another size", { ...idle, sizeBytes: 101 }, /100 bytes and not the 101/],
  ["a log and no record", { ...laidAside, session: undefined }, /did not end cleanly/],
  [
    "a log, and its table is even the newest point's",
    { ...laidAside, tableRoot: "bb", session: undefined },
    /did not end cleanly/,
  ],
  ["a record of another log", { ...laidAside, session: { ...session, undo: 3 } }, /did not end cleanly/],
  ["a record of another table", { ...laidAside, tableRoot: "cc" }, /not the one/],
  ["a file of another length", { ...laidAside, replica: { ...replica, sizeBytes: 99 } }, /touched/],
  ["another file", { ...laidAside, replica: { ...replica, inode: "8" } }, /not the file/],
  ["a touched file", { ...laidAside, replica: { ...replica, changedNanos: "1001" } }, /touched/],
];

for (const [name, findings, expected] of cases) {
  test(name, () => {
    const doubt = findDoubt(findings);
    if (expected === undefined) expect(doubt).toBeUndefined();
    else expect(doubt?.why).toMatch(expected);
  });
}

test("an adopted image that somebody wrote to since is compared: of it only mtime is known", () => {
  const adopted = { ...idle, replica: { ...replica, changedNanos: "2000" }, committedChanged: undefined };
  expect(findDoubt(adopted)).toBeUndefined();
  expect(findDoubt({ ...adopted, replicaModified: 501n })).toMatchObject({ blocks: "differing" });
  expect(findDoubt({ ...adopted, replicaModified: 499n })).toBeUndefined();
  expect(findDoubt({ ...adopted, replicaModified: 501n, committedModified: undefined })).toBeUndefined();
});

const boot = { id: "a", beganMillis: 500_000 };
const alive = { millis: 1_000_000, bootId: "a" };

/** The last session was killed while it was alive at 1,000 s; the replica was changed at `changed` milliseconds. */
function killed(changed: number, more: Partial<DiskFindings> = {}): DiskFindings {
  const changedNanos = `${BigInt(Math.round(changed * 1000)) * 1_000n}`;
  const at = { ...replica, changedNanos };
  return { ...laidAside, session: undefined, replica: at, heartbeat: alive, boot, nowMillis: 2_000_000, ...more };
}

test("after an unclean end only blocks the log names are in doubt, as far as it can be read", () => {
  expect(findDoubt(killed(1_000_000))).toEqual({ why: "the last session did not end cleanly", blocks: "recent" });
  expect(findDoubt(killed(1_000_000, { openLog: "unknown" }))?.blocks).toBe("all");
});

const later = { id: "b", beganMillis: 1_010_000 };
const endings: readonly (readonly [string, DiskFindings, RegExp | undefined])[] = [
  ["same boot, within 2 s", killed(1_002_000), undefined],
  ["same boot, a microsecond more", killed(1_002_000.001), /touched at 1970-01-01T00:16:42/],
  ["another boot, within 12 s and before it", killed(1_009_999.999, { boot: later }), undefined],
  ["another boot, within 12 s and in it", killed(1_010_000, { boot: later }), /touched/],
  ["another boot, long after", killed(1_012_000, { boot: { ...later, beganMillis: 1_900_000 } }), undefined],
  ["another boot, longer after", killed(1_012_000.001, { boot: { ...later, beganMillis: 1_900_000 } }), /touched/],
  ["no boot is known", killed(1_012_000, { boot: undefined }), undefined],
  ["no boot is known, later", killed(1_012_000.001, { boot: undefined }), /touched/],
  ["the writer knew no boot", killed(1_011_000, { boot: later, heartbeat: { ...alive, bootId: "" } }), undefined],
  ["the clock went back", killed(1_000_000, { nowMillis: 999_999 }), /no times can be compared/],
  ["no heartbeat", killed(1_000_000, { heartbeat: undefined }), /not known until when/],
];

for (const [name, findings, expected] of endings) {
  test(`after an unclean end, the replica changed: ${name}`, () => {
    const doubt = findDoubt(findings);
    if (expected === undefined) expect(doubt?.blocks).toBe("recent");
    else {
      expect(doubt).toMatchObject({ blocks: "differing", interrupted: true });
      expect(doubt?.why).toMatch(expected);
    }
  });
}

test("what an interrupted delta may have written is in doubt beside a comparison", () => {
  const expected = { blocks: "differing", interrupted: true };
  expect(findDoubt(killed(1_000_000, { sizeBytes: 101 }))).toMatchObject(expected);
  expect(findDoubt(killed(1_000_000, { suspicion: { why: "mounted" } }))).toEqual({ why: "mounted", ...expected });
  expect(findDoubt(killed(2_000_000, { suspicion: { why: "mounted" } }))).toEqual({ why: "mounted", ...expected });
});

test("a table whose root is proven is compared with the replica, whatever happened to that one", () => {
  const touched = { ...laidAside, replica: { ...replica, changedNanos: "1001" } };
  const moved = { ...laidAside, replica: { ...replica, inode: "8" } };
  for (const found of [touched, moved, { ...idle, sizeBytes: 101 }, { ...laidAside, sizeBytes: 99 }]) {
    expect(findDoubt(found)?.blocks).toBe("differing");
    expect(findDoubt({ ...found, tableRoot: "cc" })?.blocks).toBe("all");
  }
});

test("a comparison that was cut short is made again, whatever it left", () => {
  for (const found of [idle, laidAside]) {
    expect(findDoubt({ ...found, suspicion: { why: "mounted" } })).toEqual({ why: "mounted", blocks: "differing" });
  }
  expect(findDoubt({ ...idle, tableRoot: "cc", suspicion: { why: "mounted" } })?.blocks).toBe("all");
});

test("that somebody else's changes were found stays said, whatever else is in doubt", () => {
  const suspicion = { why: "mounted", found: true };
  for (const found of [idle, laidAside, { ...idle, tableRoot: "cc" }, { ...idle, sizeBytes: 101 }, killed(1_000_000)]) {
    expect(findDoubt({ ...found, suspicion })?.found).toBe(true);
    expect(findDoubt({ ...found, suspicion: { why: "mounted" } })?.found).toBeUndefined();
  }
});
