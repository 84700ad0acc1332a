/** When it is told that all of a disk is looked at again and again, and of which disks a cut has all. */
import { expect, test } from "vitest";
import type { SendReason } from "../../src/replication/report.ts";
import { WholeCycles } from "../../src/replication/whole-cycles.ts";
import { WholeDisks } from "../../src/replication/whole-disks.ts";
import { keepLog } from "../transport/kit.ts";

test.each<[string, readonly SendReason[], readonly number[]]>([
  ["deltas", ["initial", "bitmap", "bitmap"], []],
  ["one doubt", ["initial", "bitmap", "scan", "bitmap", "scan", "bitmap"], []],
  ["a comparison behind the first copy", ["initial", "scan", "bitmap"], []],
  ["two comparisons behind the first copy", ["initial", "scan", "resync:base-mismatch", "bitmap"], [2]],
  ["a receiver that forgets the disk", ["initial", "initial", "initial", "bitmap"], [2]],
  ["a restart, which compares, and another doubt", ["scan", "scan", "scan", "bitmap", "scan"], [2, 3]],
])("C-32 %s", (_what, reasons, expected) => {
  const log = keepLog();
  const cycles = new WholeCycles(log);
  for (const reason of reasons) {
    cycles.note([
      { disk: "one", reason },
      { disk: "other", reason: "bitmap" },
    ]);
  }
  expect(log.lines.map(({ level, fields }) => ({ level, ...fields }))).toEqual(
    expected.map((inARow) => expect.objectContaining({ level: "warn", disk: "one", inARow })),
  );
});

test("doubt about one disk is of that one; another mismatch, or one that nobody claims, of all", () => {
  const all = ["a", "b", "c"];
  const whole = new WholeDisks<string>();
  whole.add("b");
  whole.missed(all);
  expect(whole.disks).toEqual(["b"]);
  whole.add("c");
  whole.missed(all);
  expect([...whole.disks].sort()).toEqual(all);
  whole.clear();
  expect(whole.disks).toEqual([]);
  whole.add("a");
  whole.missed(all);
  expect(all.filter((disk) => whole.has(disk))).toEqual(["a"]);
  whole.clear();
  whole.missed(all);
  expect(all.every((disk) => whole.has(disk))).toBe(true);
});
