/** C-73: the command line on the night summer time ends, and after a clock that went back: times in UTC, periods of the machine's zone, a number of its own for each point. */
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, type TestContext } from "vitest";
import { MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { randomBytes } from "../random.ts";
import { hastyClock, PairKit } from "../replication/pair-kit.ts";
import { replicate } from "./kit.ts";

/** By the sender's clock; behind each what a clock on a wall in Rome shows. */
const nights = [
  ["2026-10-24T21:30:00Z", "23:30 of the 24th"],
  ["2026-10-24T22:30:00Z", "00:30 of the 25th"],
  ["2026-10-25T00:30:00Z", "02:30, summer time"],
  ["2026-10-25T01:30:00Z", "02:30 once more"],
  ["2026-10-25T00:30:00Z", "02:30, summer time: put back an hour"],
  ["2026-10-25T00:45:00Z", "02:45, summer time"],
] as const;

let kit: PairKit;

beforeAll(async () => {
  kit = await PairKit.create();
  const image = createMemoryImage(2 * MIB);
  for (const [index, [time]] of nights.entries()) {
    await image.write(randomBytes(5_000), index * 100_000);
    const clock = { ...hastyClock, now: () => Date.parse(time) };
    expect(await kit.send(image, { disk: "vm", clock })).toMatchObject({ point: index + 1, created: true });
    await kit.idle();
  }
});

afterAll(async () => {
  expect(await kit.close()).toBe(true);
});

/** Rows of a table, point by point, by the command in this zone. */
async function rowsIn(t: TestContext, zone: string, verb: string, ...args: string[]): Promise<readonly string[]> {
  const command = [verb, "--store", join(kit.folder, "store"), "vm", ...args];
  const result = await replicate(t, command, { env: { TZ: zone } });
  expect(result.code, result.stderr).toBe(0);
  return result.stdout.split("\n").filter((line) => /^\d+ /.test(line));
}

/** What `prune` says of each point. */
async function verdictsIn(t: TestContext, zone: string, keep: string): Promise<readonly string[]> {
  const rows = await rowsIn(t, zone, "prune", "--keep", keep, "--dry-run", "--explain");
  expectTimes(rows);
  return rows.map(
    (row) =>
      /(kept|removed) .*$/
        .exec(row)?.[0]
        .replace(/ +/, ": ")
        .replace(/ \(its time.*/, "") ?? row,
  );
}

/** Numbers are those of the order, each once; times are the sender's in UTC, and say so, whatever the zone. */
function expectTimes(rows: readonly string[]): void {
  expect(rows.map((row) => row.split(/ {2,}/).slice(0, 2))).toEqual(
    nights.map(([time], index) => [String(index + 1), time.replace("T", " ")]),
  );
}

for (const zone of ["Europe/Rome", "America/Montreal", "UTC"]) {
  test(`TZ=${zone}: points has times in UTC, and a number for each`, async (t) => {
    expectTimes(await rowsIn(t, zone, "points"));
  });
}

test("TZ=Europe/Rome: the hour that comes twice is two hours, by their offsets, and one that was gone back to is one", async (t) => {
  expect(await verdictsIn(t, "Europe/Rome", "hourly=9")).toEqual([
    "kept: hourly 2026-10-24T23 (+02:00)",
    "kept: hourly 2026-10-25T00 (+02:00)",
    "removed: a newer point stands for hourly 2026-10-25T02 (+02:00)",
    "kept: hourly 2026-10-25T02 (+01:00)",
    "removed: a newer point stands for hourly 2026-10-25T02 (+02:00)",
    "kept: newest",
  ]);
});

test("a point of 22:30 UTC is of the next day in Rome, and of the same in UTC and Montreal", async (t) => {
  const dayOfSecond = async (zone: string): Promise<string | undefined> => {
    const [, second] = await verdictsIn(t, zone, "daily=9");
    return /daily (\d{4}-\d{2}-\d{2})/.exec(second ?? "")?.[1];
  };
  expect(await dayOfSecond("Europe/Rome")).toBe("2026-10-25");
  expect(await dayOfSecond("UTC")).toBe("2026-10-24");
  expect(await dayOfSecond("America/Montreal")).toBe("2026-10-24");
});
