/** The verbs for recovery points, in this process, on a store that another part of the process has open. */
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { KIB } from "../../src/base/units.ts";
import { compareVerb } from "../../src/cli/compare.ts";
import { disksVerb } from "../../src/cli/disks.ts";
import { keepVerb } from "../../src/cli/keep.ts";
import { holdVerb } from "../../src/cli/hold.ts";
import { choosePoint, parseDiskPoint, parseMoment } from "../../src/cli/point-name.ts";
import { pointsVerb } from "../../src/cli/points.ts";
import { workLine } from "../../src/cli/progress.ts";
import { pruneVerb } from "../../src/cli/prune.ts";
import { releaseVerb } from "../../src/cli/release.ts";
import { restoreVerb } from "../../src/cli/restore.ts";
import { formatTime } from "../../src/cli/values.ts";
import type { CliIo, Verb } from "../../src/cli/verb.ts";
import { verifyVerb } from "../../src/cli/verify.ts";
import type { Point } from "../../src/index.ts";
import { Changing, PointKit, whileChanged } from "../replica/point-kit.ts";

const block = 16 * KIB;

function pointOf(point: number, time: number, more: Partial<Point> = {}): Point {
  const facts = { root: "00", sizeBytes: 1, generation: "g", term: 1, cycle: "c", source: "s", sourceName: "n" };
  return { point, time, label: undefined, consistency: "crash", ...facts, ...more };
}

describe("names of points", () => {
  test("DISK@POINT", () => {
    expect(parseDiskPoint("web", "v")).toEqual({ disk: "web", point: undefined });
    expect(parseDiskPoint("web.sda@before the update", "v")).toEqual({ disk: "web.sda", point: "before the update" });
    expect(parseDiskPoint("web@a@b", "v")).toEqual({ disk: "web", point: "a@b" });
    for (const text of ["", "@7", "Web@7", "../x@7", "web@", "we b"]) {
      expect(() => parseDiskPoint(text, "v"), text).toThrowError(expect.objectContaining({ code: "usage" }));
    }
  });

  const day = Date.UTC(2026, 10, 25);
  test.each([
    ["2026-11-25", day + 999],
    ["2026-11-25T05:00", day + 5 * 3_600_000 + 999],
    ["2026-11-25T05:00Z", day + 5 * 3_600_000 + 999],
    ["2026-11-25 05:00:07Z", day + 5 * 3_600_000 + 7_999],
    ["2026-11-25T05:00:07.5Z", day + 5 * 3_600_000 + 7_500],
    ["2026-11-25T05:00+02:00", day + 3 * 3_600_000 + 999],
    ["2026-11-25T05:00-0130", day + 6.5 * 3_600_000 + 999],
  ])("time %s", (text, millis) => {
    expect(parseMoment(text)).toBe(millis);
  });
  test.each([
    "2026-02-30",
    "2026-13-01",
    "2026-11-25T24:00Z",
    "2026-11-25T05:60Z",
    "2026-11-25Z",
    "25.11.2026",
    "now",
    "",
  ])("no time: %j", (text) => {
    expect(parseMoment(text)).toBeUndefined();
  });

  const points = [
    pointOf(3, day + 1_500, { label: "nightly" }),
    pointOf(4, day + 60_400, { label: "nightly", consistency: "application" }),
    pointOf(5, day + 120_000, { label: "7" }),
    // Its clock was wrong.
    pointOf(6, day - 1e12),
    pointOf(8, day + 240_000),
  ];
  const choose = (text?: string, unreadable: { point: number; message: string }[] = []): number =>
    choosePoint({ disk: "web", points, unreadable }, text);

  test.each([
    [undefined, 8],
    ["latest", 8],
    ["latest-app", 4],
    ["nightly", 4],
    // A number is a number, whatever labels there are, and need not exist.
    ["7", 7],
    ["2026-11-25T00:01:00Z", 4],
    // The time a list shows for a point names that point.
    [formatTime(day + 60_400), 4],
    ["2026-11-25T00:03Z", 5],
    ["2020-01-01", 6],
  ])("%s is point %s", (text, point) => {
    expect(choose(text)).toBe(point);
  });
  test.each([
    ["weekly", /label "weekly"/],
    ["1990-01-01", /1990-01-01 or before/],
    ["2026-02-30", /label "2026-02-30"/],
  ])("%s: not found, and said why", (text, message) => {
    expect(() => choose(text)).toThrowError(expect.objectContaining({ code: "point-not-found" }));
    expect(() => choose(text)).toThrowError(message);
  });
  test("without points, and with records that cannot be read", () => {
    const nothing = { disk: "web", points: [], unreadable: [] };
    expect(() => choosePoint(nothing)).toThrowError(/no points yet/);
    expect(() => choosePoint(nothing, "latest-app")).toThrowError(/no point that an application/);
    // An older point never passes for the newest.
    expect(() => choose("latest", [{ point: 9, message: "9 is torn" }])).toThrowError(/9 is torn/);
    expect(choose("latest", [{ point: 2, message: "2 is torn" }])).toBe(8);
  });
});

test("progress of work", () => {
  const work = { title: "restoring web", facts: {}, doneBytes: 256 * 2 ** 20, totalBytes: 2 ** 30 };
  expect(workLine(work, 2)).toBe("restoring web: 25 % of 1.0 GiB, 128 MiB/s, 6 s left");
  expect(workLine({ ...work, doneBytes: 0, totalBytes: 0 }, 0)).toBe("restoring web: 0 % of 0 B, 0 B/s, ? left");
});

describe("the verbs", () => {
  let kit: PointKit;

  beforeAll(async () => {
    kit = await PointKit.create({ blockBytes: block });
    const disk = new Changing(20 * block + 100);
    await kit.commit(disk.write(0, 8 * block).content, { label: "first" });
    await kit.commit(disk.write(2 * block, 3 * block).content, { consistency: "application" });
    await kit.commit(disk.write(4 * block, block).content);
  });
  afterAll(async () => {
    await kit.close();
  });

  interface Ran {
    readonly code: number;
    readonly out: string;
    readonly lines: readonly Record<string, unknown>[];
  }

  async function run(verb: Verb, args: readonly string[], signal = new AbortController().signal): Promise<Ran> {
    let out = "";
    const io: CliIo = {
      out: (text) => void (out += text),
      err: () => undefined,
      env: { USER: "jo" },
      cwd: kit.pair.folder,
      signal,
      isTerminal: false,
      columns: 80,
    };
    const code = await verb.run(["--store", kit.pair.store.path, ...args], io);
    const lines = out.split("\n").filter((line) => line.startsWith("{"));
    return { code, out, lines: lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
  }

  test("keep: the policy a disk follows, and one of its own", async () => {
    expect((await run(keepVerb, ["disk", "--json"])).lines).toEqual([
      { event: "policy", disk: "disk", keep: expect.stringMatching(/./) as string, own: false },
    ]);
    expect((await run(keepVerb, ["disk", "--policy", "last=5"])).out).toBe("disk: last=5 (its own)\n");
    expect((await run(pointsVerb, ["disk", "--json"])).lines).toMatchObject([{ keptBy: "last, 3 of 5" }, {}, {}]);
    expect((await run(keepVerb, ["disk", "--inherit"])).out).toMatch(/^disk: .* \(the store's\)\n$/);
    for (const args of [["disk", "--policy", "last=5", "--inherit"], ["disk", "--policy", "now and then"], []]) {
      await expect(run(keepVerb, args)).rejects.toMatchObject({ code: "usage" });
    }
    await expect(run(keepVerb, ["nobody"])).rejects.toMatchObject({ code: "disk-not-found" });
  });

  test("points: with a policy that cannot be read they are listed all the same", async () => {
    const file = join(kit.pair.store.path, "disks/disk/keep.json");
    writeFileSync(file, "{}");
    try {
      const { code, out } = await run(pointsVerb, ["disk"]);
      expect(code).toBe(1);
      expect(out).toMatch(/^3 .*\nnothing is removed: .*keep\.json/m);
      expect((await run(pointsVerb, ["disk", "--json"])).lines).toMatchObject([
        { point: 1, keptBy: null },
        { point: 2 },
        { point: 3 },
        { trouble: expect.stringContaining("keep.json") as string },
      ]);
    } finally {
      rmSync(file);
    }
  });

  test("points: one object a line, oldest first, with these keys", async () => {
    const { code, lines } = await run(pointsVerb, ["disk", "--json"]);
    expect(code).toBe(0);
    for (const line of lines) {
      expect(Object.keys(line)).toEqual([
        "point",
        "time",
        "label",
        "consistency",
        "root",
        "sizeBytes",
        "storedBytes",
        "held",
        "keptBy",
        "cut",
        "cutComplete",
      ]);
    }
    expect(lines).toMatchObject([
      { point: 1, label: "first", consistency: "crash", sizeBytes: 20 * block + 100, held: null },
      { point: 2, label: null, consistency: "application" },
      { point: 3, storedBytes: 0, keptBy: "newest" },
    ]);
    const stored = lines.map(({ storedBytes }) => Number(storedBytes));
    expect(stored[0]).toBe(readFileSync(kit.logPath(1)).length);
    expect(stored[0]).toBeGreaterThan(3 * block);
    expect(lines[0]?.["keptBy"]).toEqual(expect.any(String));
  });

  test("points and disks for people", async () => {
    const { out } = await run(pointsVerb, ["disk"]);
    const rows = out.trimEnd().split("\n");
    expect(rows[0]).toMatch(/^POINT +TIME +CONSISTENCY +LABEL +SIZE +STORED +HELD +KEPT BY$/);
    expect(rows.length).toBe(4);
    expect(rows[1]).toMatch(/^1 +\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ +crash +first /);
    expect(rows[3]).toMatch(/^3 .* newest$/);
    const disks = await run(disksVerb, ["--json"]);
    expect(disks.lines).toMatchObject([{ disk: "disk", points: 3, latest: 3, state: "idle" }]);
    const logs = [1, 2].map((point) => readFileSync(kit.logPath(point)).length);
    expect(disks.lines[0]?.["undoBytes"]).toBe((logs[0] ?? 0) + (logs[1] ?? 0));
    expect((await run(disksVerb, [])).out).toMatch(/^disk .* 3 .*idle$/m);
  });

  test.each([
    ["disk", 3],
    ["disk@latest", 3],
    ["disk@latest-app", 2],
    ["disk@first", 1],
    ["disk@2", 2],
    ["disk@2099-01-01", 3],
  ])("restore %s", async (name, point) => {
    const { code, lines } = await run(restoreVerb, [name, "out.raw", "--force", "--json"]);
    expect(code).toBe(0);
    const { root } = await kit.pair.store.points("disk").then(({ points }) => points[point - 1] ?? { root: "" });
    expect(lines.at(-1)).toMatchObject({ event: "done", disk: "disk", point, root, bytes: 20 * block + 100 });
    expect(lines.at(-1)?.["bytesWritten"]).toBe(8 * block);
    expect(Object.keys(lines.at(-1) ?? {})).toEqual([
      "event",
      "disk",
      "point",
      "root",
      "bytes",
      "bytesWritten",
      "seconds",
    ]);
    expect(readFileSync(join(kit.pair.folder, "out.raw")).equals(kit.content(point))).toBe(true);
  });

  test("restore refuses a file that exists, formats it cannot write, points that are not there", async () => {
    const path = join(kit.pair.folder, "there.raw");
    writeFileSync(path, "mine");
    await expect(run(restoreVerb, ["disk", "there.raw"])).rejects.toMatchObject({ code: "target-exists" });
    expect(readFileSync(path, "utf8")).toBe("mine");
    const qcow2 = run(restoreVerb, ["disk", "new.qcow2", "--format", "qcow2"]);
    await expect(qcow2).rejects.toMatchObject({
      code: "usage",
      message: expect.stringMatching(/raw.*vhdx/) as string,
    });
    await expect(run(restoreVerb, ["disk@9", "new.raw"])).rejects.toMatchObject({ code: "point-not-found" });
    await expect(run(restoreVerb, ["disk@weekly", "new.raw"])).rejects.toMatchObject({ code: "point-not-found" });
    await expect(run(restoreVerb, ["other", "new.raw"])).rejects.toMatchObject({ code: "disk-not-found" });
    expect(existsSync(join(kit.pair.folder, "new.raw"))).toBe(false);
  });

  test("verify: good; then damaged, in words and as JSON", async () => {
    const good = await run(verifyVerb, ["--json"]);
    expect(good.code).toBe(0);
    expect(good.lines).toMatchObject([{ event: "verified", disk: "disk", point: 3, good: true, ranges: [] }]);
    expect((await run(verifyVerb, ["--all"])).out).toMatch(/^disk@1: good.*\ndisk@2: good.*\ndisk@3: good.*\n$/);
    const flip = (bytes: Buffer): Buffer => bytes.fill(bytes.readUInt8(4 * block) ^ 1, 4 * block, 4 * block + 1);
    await whileChanged(kit.path("replica.raw"), flip, async () => {
      const bad = await run(verifyVerb, ["disk", "--json"]);
      expect(bad.code).toBe(3);
      expect(bad.lines.at(-1)).toMatchObject({
        good: false,
        rootMatches: true,
        bytesDamaged: block,
        rangesDamaged: 1,
        ranges: [{ offset: 4 * block, length: block, goodPoint: 2, sameContent: false }],
      });
      const text = await run(verifyVerb, ["disk@3"]);
      expect(text.out).toMatch(/^disk@3: DAMAGED: 16\.0 KiB in 1 range;/);
      expect(text.out).toMatch(/^ {2}at 65536, 16384 bytes: .*; point 2 has other, good content there$/m);
      expect((await run(verifyVerb, ["--all"])).code).toBe(3);
      const salvaged = await run(restoreVerb, ["disk", "left.raw", "--salvage", "--json"]);
      expect(salvaged.code).toBe(3);
      expect(salvaged.lines.at(-1)).toMatchObject({
        event: "done",
        bytesLost: block,
        rangesLost: 1,
        ranges: [{ offset: 4 * block, length: block }],
      });
      const told = await run(restoreVerb, ["disk", "left.raw", "--salvage", "--force"]);
      expect(told.out).toMatch(
        /^zeros in place of 16\.0 KiB that cannot be told any more:\n {2}at 65536, 16384 bytes: /m,
      );
      expect((await run(verifyVerb, ["disk@2"])).code).toBe(0);
    });
    // A record that cannot be read hides what is older, and nothing newer.
    await whileChanged(
      join(kit.points, "0000000002.json"),
      (bytes) => bytes.fill(0x20, 10, 20),
      async () => {
        const torn = await run(verifyVerb, ["--all", "--json"]);
        expect(torn.code).toBe(3);
        expect(torn.lines.map(({ point, good: isGood }) => [point, isGood])).toEqual([
          [2, false],
          [1, false],
          [3, true],
        ]);
        const listed = await run(pointsVerb, ["disk"]);
        expect(listed.code).toBe(1);
        expect(listed.out).toMatch(/point 2 cannot be read, nor any before it/);
      },
    );
  });

  test("hold, release and prune", async () => {
    const held = await run(holdVerb, ["disk@first", "--for", "30d", "--json"]);
    expect(held.lines).toMatchObject([
      { event: "held", disk: "disk", point: 1, owner: "jo", until: expect.any(Number) as number },
    ]);
    // Another's hold is neither changed nor ended by accident.
    await expect(run(holdVerb, ["disk@1", "--owner", "mo"])).rejects.toMatchObject({ code: "not-allowed" });
    await expect(run(releaseVerb, ["disk@1", "--owner", "mo"])).rejects.toMatchObject({ code: "not-allowed" });
    const listed = await run(pointsVerb, ["disk", "--json"]);
    expect(listed.lines[0]).toMatchObject({
      held: { owner: "jo" },
      keptBy: expect.stringContaining("held by jo") as string,
    });

    const dry = await run(pruneVerb, ["disk", "--keep", "last=1", "--dry-run", "--explain"]);
    expect(dry.out).toMatch(/^disk: 2 of 3 points would be kept, 1 would be removed\n/);
    expect(dry.out).toMatch(/^1 .* kept +held by jo/m);
    expect(dry.out).toMatch(/^2 .* removed/m);
    expect((await kit.pair.store.points("disk")).points.length).toBe(3);

    const pruned = await run(pruneVerb, ["--keep", "last=1", "--explain", "--json"]);
    expect(pruned.lines.map(({ event, point, keep }) => [event, point, keep])).toEqual([
      ["verdict", 1, true],
      ["verdict", 2, false],
      ["verdict", 3, true],
      ["pruned", undefined, undefined],
    ]);
    expect(pruned.lines.at(-1)).toMatchObject({ disk: "disk", points: 2, removed: 1, dryRun: false });
    await run(restoreVerb, ["disk@1", "one.raw"]);
    expect(readFileSync(join(kit.pair.folder, "one.raw")).equals(kit.content(1))).toBe(true);

    expect((await run(releaseVerb, ["disk@1", "--anybody"])).out).toBe("disk: point 1 is not held\n");
    expect((await run(pruneVerb, ["disk", "--keep", "last=0"])).out).toMatch(/^disk: 1 of 2 points kept, 1 removed\n/);
    await expect(run(restoreVerb, ["disk@1", "two.raw"])).rejects.toMatchObject({ code: "point-not-found" });
    expect((await run(verifyVerb, [])).code).toBe(0);
  });

  test("compare with a point of a store", async () => {
    const image = join(kit.pair.folder, "three.raw");
    writeFileSync(image, kit.content(3));
    const compare = async (a: string, b: string): Promise<number> => {
      const ignored = { out: () => undefined, err: () => undefined, env: {}, cwd: kit.pair.folder };
      const io: CliIo = { ...ignored, signal: new AbortController().signal, isTerminal: false, columns: 80 };
      return compareVerb.run([a, b], io);
    };
    expect(await compare(image, `${kit.pair.store.path}/disk@3`)).toBe(0);
    writeFileSync(image, kit.content(2));
    expect(await compare(image, `${kit.pair.store.path}/disk@latest`)).toBe(3);
    await expect(compare(image, `${kit.pair.folder}/disk@3`)).rejects.toMatchObject({ code: "store-not-found" });
  });

  test.each([
    [pointsVerb, []],
    [pointsVerb, ["disk@3"]],
    [restoreVerb, ["disk"]],
    [restoreVerb, ["disk@", "out"]],
    [restoreVerb, ["disk", "out", "--format", "qcow2"]],
    [verifyVerb, ["disk@3", "--all"]],
    [verifyVerb, ["disk", "--rate", "0"]],
    [verifyVerb, ["disk", "disk"]],
    [pruneVerb, ["--keep", "daily"]],
    [pruneVerb, ["Disk"]],
    [holdVerb, ["disk"]],
    [holdVerb, ["disk@3", "--for", "soon"]],
    [holdVerb, ["disk@3", "--owner", "anybody"]],
    [releaseVerb, ["disk@3", "--owner", "jo", "--anybody"]],
  ] as const)("wrong usage: %s %j", async (verb, args) => {
    await expect(run(verb, args)).rejects.toMatchObject({ code: "usage" });
  });

  test("a store that is not there", async () => {
    for (const [name, verb] of Object.entries({ pointsVerb, verifyVerb, pruneVerb, disksVerb })) {
      const io = { out: () => undefined, err: () => undefined, env: {}, cwd: ".", isTerminal: false, columns: 80 };
      const args = ["--store", join(kit.pair.folder, "nowhere"), ...(verb === pointsVerb ? ["disk"] : [])];
      const ran = verb.run(args, { ...io, signal: new AbortController().signal });
      await expect(ran, name).rejects.toMatchObject({ code: "store-not-found" });
    }
  });
});
