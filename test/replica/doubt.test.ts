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
  sizeBytes: 100,
};
const laidAside: DiskFindings = { ...idle, tableRoot: "aa", openLog: "named", session };

const cases: readonly (readonly [string, DiskFindings, RegExp | undefined])[] = [
  ["idle", idle, undefined],
  [
    "idle, whatever the replica's inode and time: a store may be copied",
    { ...idle, replica: { ...replica, inode: "8", changedNanos: "1" } },
    undefined,
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

test("a replica somebody wrote to since is compared; a time that went back, or is not known, says nothing", () => {
  expect(findDoubt({ ...idle, replicaModified: 501n })).toMatchObject({ blocks: "differing" });
  expect(findDoubt({ ...idle, replicaModified: 499n })).toBeUndefined();
  expect(findDoubt({ ...idle, replicaModified: 501n, committedModified: undefined })).toBeUndefined();
});

test("after an unclean end only blocks the log names are in doubt, as far as it can be read", () => {
  const unclean = { ...laidAside, session: undefined };
  expect(findDoubt(unclean)?.blocks).toBe("recent");
  expect(findDoubt({ ...unclean, openLog: "unknown" })?.blocks).toBe("all");
  expect(findDoubt({ ...unclean, sizeBytes: 101 })?.blocks).toBe("all");
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
  for (const found of [idle, laidAside, { ...laidAside, session: undefined }]) {
    expect(findDoubt({ ...found, suspicion: "mounted" })).toEqual({ why: "mounted", blocks: "differing" });
  }
  expect(findDoubt({ ...idle, tableRoot: "cc", suspicion: "mounted" })?.blocks).toBe("all");
});
