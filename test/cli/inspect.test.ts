import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { inspectVerb } from "../../src/cli/inspect.ts";
import type { CliIo } from "../../src/cli/verb.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import { writeSuspicion } from "../../src/replica/suspicion.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { tableAt, writeVhd } from "../image/vhd-kit.ts";
import { guids, writeVhdx } from "../image/vhdx/kit.ts";
import { randomBytes } from "../random.ts";
import { PairKit } from "../replication/pair-kit.ts";

const fixtures = join(import.meta.dirname, "../../fixtures");
const folder = mkdtempSync(join(tmpdir(), "replicate-inspect-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function run(args: readonly string[]): Promise<{ code: number; text: string }> {
  let text = "";
  const io: CliIo = {
    out: (more) => void (text += more),
    err: () => undefined,
    env: {},
    cwd: folder,
    signal: new AbortController().signal,
    isTerminal: false,
    columns: 80,
  };
  const code = await inspectVerb.run(args, io);
  return { code, text };
}

async function inspect(path: string): Promise<{ code: number; lines: Record<string, unknown>[] }> {
  const { code, text } = await run([path, "--json"]);
  const lines = text.split("\n").filter((line) => line !== "");
  return { code, lines: lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

describe("frames", () => {
  const frames = readdirSync(join(fixtures, "wire"))
    .filter((name) => name.endsWith(".hex"))
    .map((name) => Buffer.from(readFileSync(join(fixtures, "wire", name), "utf8").replace(/\s/g, ""), "hex"));

  test("a file of golden frames, one line each", async () => {
    const path = join(folder, "frames.bin");
    writeFileSync(path, Buffer.concat(frames));
    const { code, lines } = await inspect(path);
    expect(code).toBe(0);
    expect(lines.length).toBe(frames.length);
    for (const line of lines) expect(line["kind"]).toMatch(/^frame [a-z-]+$/);
  });

  test.each(readdirSync(join(fixtures, "wire")))("hexadecimal text: %s", async (name) => {
    const { code, lines } = await inspect(join(fixtures, "wire", name));
    expect([code, lines.length]).toEqual([0, 1]);
    expect(lines[0]?.["kind"]).toMatch(/^frame [a-z-]+$/);
  });

  test("one line each for people too", async () => {
    const path = join(folder, "people.bin");
    writeFileSync(path, Buffer.concat(frames));
    const { text } = await run([path]);
    expect(text.trimEnd().split("\n").length).toBe(frames.length);
    expect(text).toMatch(/^frame data at=\d+ frameBytes=\d+ /m);
  });

  test("a damaged one at the start is no image", async () => {
    const path = join(folder, "first.bin");
    const bent = Buffer.from(frames[0] ?? []);
    const last = bent.length - 1;
    bent[last] = (bent[last] ?? 0) ^ 1;
    writeFileSync(path, bent);
    const { code, lines } = await inspect(path);
    expect(code).toBe(1);
    expect(lines).toMatchObject([{ kind: "frame", at: 0, trouble: expect.stringContaining("checksum") as string }]);
  });

  test("what follows a damaged frame is not guessed at", async () => {
    const path = join(folder, "damaged.bin");
    const [first = Buffer.alloc(0), second = Buffer.alloc(0)] = frames;
    const bent = Buffer.from(second);
    bent[4] = (bent[4] ?? 0) ^ 0xff;
    writeFileSync(path, Buffer.concat([first, bent]));
    const { code, lines } = await inspect(path);
    expect(code).toBe(1);
    expect(lines.length).toBe(2);
    expect(lines[1]?.["trouble"]).toEqual(expect.any(String));
  });

  test("a cut one is told", async () => {
    const path = join(folder, "cut.bin");
    const [first = Buffer.alloc(0), second = Buffer.alloc(0)] = frames;
    writeFileSync(path, Buffer.concat([first, second.subarray(0, second.length - 1)]));
    const { code, lines } = await inspect(path);
    expect(code).toBe(1);
    expect(lines.at(-1)?.["trouble"]).toContain("middle of a frame");
  });
});

describe("other files", () => {
  test("an image", async () => {
    writeFileSync(join(folder, "disk.img"), Buffer.alloc(100_000, 1));
    const { code, lines } = await inspect("disk.img");
    expect(code).toBe(0);
    expect(lines).toMatchObject([{ kind: "image", format: "raw", sizeBytes: 100_000, trouble: null }]);
  });

  test("an image of another format, by its content and by its name", async () => {
    writeFileSync(join(folder, "disk.bin"), Buffer.concat([Buffer.from("QFI\xfb", "latin1"), Buffer.alloc(1_000)]));
    expect(await inspect("disk.bin")).toMatchObject({
      code: 0,
      lines: [{ kind: "image", format: "qcow2", fileBytes: 1_004, trouble: null }],
    });
    writeFileSync(join(folder, "disk.vhdx"), Buffer.alloc(1_000));
    const misnamed = await inspect("disk.vhdx");
    expect(misnamed.code).toBe(1);
    expect(misnamed.lines[0]?.["trouble"]).toContain("VHDX");
  });

  test("a VHDX image: whole, with one damaged header, and cut", async () => {
    const path = join(folder, "disk.vhdx");
    const parent = { parent_linkage: `{${guids.log}}`, relative_path: ".\\gone\u001b[31m.vhdx" };
    const pieces = [{ offset: 0, bytes: Buffer.alloc(512, 1) }];
    await writeVhdx(path, { sizeBytes: 4 * 2 ** 20, parent, pieces });
    const whole = await inspect("disk.vhdx");
    expect(whole.code).toBe(0);
    expect(whole.lines).toMatchObject([
      {
        ...{ kind: "image", format: "vhdx", type: "differencing", sizeBytes: 4 * 2 ** 20, payloadBlockBytes: 2 ** 20 },
        ...{ payloadBlocks: 4, partlyPresent: 1, ofParent: 3, trouble: null, creator: "a test" },
      },
    ]);
    // For people, without what a terminal would take for a command.
    expect((await run(["disk.vhdx"])).text).toContain("gone?[31m.vhdx");
    const bytes = readFileSync(path);
    bytes.fill(0, 64 * 1024, 68 * 1024);
    writeFileSync(path, bytes);
    expect(await inspect("disk.vhdx")).toMatchObject({
      code: 1,
      lines: [{ sizeBytes: 4 * 2 ** 20, trouble: "header 1: signature missing, header 2 used" }],
    });
    writeFileSync(path, bytes.subarray(0, 2 ** 20));
    const cut = await inspect("disk.vhdx");
    expect(cut.code).toBe(1);
    expect(cut.lines[0]).toMatchObject({ format: "vhdx", fileBytes: 2 ** 20 });
    expect(cut.lines[0]?.["trouble"]).toContain("cut short");
  });

  test("a VHD image: whole, with a block over its table, and without its footer", async () => {
    const path = join(folder, "disk.vhd");
    const pieces = [{ offset: 0, bytes: Buffer.alloc(512, 1) }];
    const { sizeBytes } = await writeVhd(path, { sizeBytes: 5 * 2 ** 20, type: "dynamic", pieces });
    expect(await inspect("disk.vhd")).toMatchObject({
      code: 0,
      lines: [{ format: "vhd", type: "dynamic", sizeBytes: 5 * 2 ** 20, present: 1, absent: 2, trouble: null }],
    });
    const bytes = readFileSync(path);
    bytes.writeUInt32BE(3, tableAt + 4);
    writeFileSync(path, bytes);
    const over = await inspect("disk.vhd");
    expect(over).toMatchObject({ code: 1, lines: [{ sizeBytes: 5 * 2 ** 20 }] });
    expect(over.lines[0]?.["trouble"]).toContain("payload block 1 at 1536 lies over the table");
    bytes.writeUInt32BE(0xffff_ffff, tableAt + 4);
    writeFileSync(path, bytes.subarray(0, sizeBytes - 512));
    expect(await inspect("disk.vhd")).toMatchObject({
      code: 1,
      lines: [{ present: 1, trouble: expect.stringContaining("footer at the end is damaged or missing") }],
    });
  });

  test("an empty one, and text that is not hexadecimal", async () => {
    writeFileSync(join(folder, "empty"), "");
    expect(await inspect("empty")).toMatchObject({ code: 0, lines: [{ kind: "image", sizeBytes: 0 }] });
    writeFileSync(join(folder, "text"), "52500700 is how a frame begins");
    expect(await inspect("text")).toMatchObject({ code: 0, lines: [{ kind: "image", format: "raw" }] });
  });

  test("a file of a store with a bit flipped", async () => {
    const stores = readdirSync(join(fixtures, "store"), { recursive: true }).map(String);
    const record = stores.find((name) => name.endsWith("disk.json"));
    expect(record).toBeDefined();
    const bytes = readFileSync(join(fixtures, "store", record ?? ""));
    writeFileSync(join(folder, "disk.json"), bytes);
    expect(await inspect("disk.json")).toMatchObject({ code: 0, lines: [{ kind: "disk", trouble: null }] });
    const at = bytes.indexOf('"owner"') + 10;
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    writeFileSync(join(folder, "disk.json"), bytes);
    const damaged = await inspect("disk.json");
    expect(damaged.code).toBe(1);
    expect(damaged.lines[0]?.["trouble"]).toEqual(expect.any(String));
  });

  test("one that is not there, and a folder", async () => {
    await expect(inspect("nowhere")).rejects.toMatchObject({ code: "image-not-found" });
    await expect(inspect(".")).rejects.toThrowError(/directory/);
  });
});

/** What each file of a folder is, with its format, or the image an adoption names. A table without its disk.json cannot be judged, all else is whole. */
async function kindsIn(root: string): Promise<Readonly<Record<string, string>>> {
  const found: Record<string, string> = {};
  for (const entry of readdirSync(root, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    const { code, lines } = await inspect(path);
    expect([path, code, lines.length]).toEqual([path, /adopted\/(digests|pages)$/.test(path) ? 1 : 0, 1]);
    const { kind, format, image } = lines[0] ?? {};
    const name = path.slice(root.length + 1).replace(/\.\d+\.undo$/, ".N.undo");
    found[name] = [kind, format, image].filter((word) => typeof word === "string").join(" ");
  }
  return found;
}

describe("every file of a store", () => {
  const disk = join(fixtures, "store/v1/disks/vm1.sda");
  const files: readonly (readonly [string, string])[] = [
    ["../../store.json", "store"],
    ["disk.json", "disk"],
    ["points/0000000001.json", "point"],
    ["points/0000000001.undo", "undo log"],
    ["session.json", "session"],
    ["suspect.json", "suspicion"],
    ["keep.json", "policy"],
    ["digests", "digests"],
    ["pages", "page digests"],
    ["../../../v1-joined/disk.json", "disk"],
    ["../../../v1-joined/points/0000000001.json", "point"],
    ["../../../v1-joined/points/0000000001.9291849.undo", "undo log"],
  ];

  test.each(files)("%s", async (name, kind) => {
    expect(await inspect(join(disk, name))).toMatchObject({ code: 0, lines: [{ kind, trouble: null }] });
  });

  test("a store that was used: none is taken for something else, and none is left out", async () => {
    const kit = await PairKit.create({ newDisks: { format: "vhdx", payloadBlockBytes: 2 ** 20 } });
    try {
      const { store, folder: root } = kit;
      const image = createMemoryImage(2 * 2 ** 20);
      for (let point = 1; point <= 4; point++) {
        await image.write(randomBytes(256 * 1024), 0);
        await kit.send(image);
        await kit.idle();
      }
      await store.hold("disk", 1, { owner: "test", until: undefined });
      await store.prune("disk", { keep: "last=1" });
      expect(await store.compact("disk")).toMatchObject([{ point: 1 }]);
      await (await store.openPoint("disk", 1)).close();
      await writeSuspicion(createNodeStorage(), diskPaths(store.path, "disk"), { why: "somebody mounted it" });
      const adopted = join(root, "adopted.img");
      writeFileSync(adopted, Buffer.alloc(100_000, 1));
      // In the middle of an adoption: its mark goes with it.
      let found: Readonly<Record<string, string>> = {};
      await store.adopt("adopted", { image: adopted, owner: "CN=sender" }, async () => {
        found = await kindsIn(store.path);
      });
      expect(found).toEqual({
        "store.json": "store",
        "disks/adopted/adopt.new": `adoption ${adopted}`,
        "disks/adopted/apply.lock": "lock",
        "disks/adopted/digests": "digests",
        "disks/adopted/pages": "page digests",
        "disks/disk/apply.lock": "lock",
        "disks/disk/chain.lock": "lock",
        "disks/disk/digests": "digests",
        "disks/disk/disk.json": "disk vhdx",
        "disks/disk/pages": "page digests",
        "disks/disk/points/0000000001.N.undo": "undo log",
        "disks/disk/points/0000000001.json": "point",
        "disks/disk/points/0000000001.lock": "lock",
        "disks/disk/points/0000000004.json": "point",
        "disks/disk/replica.vhdx": "image vhdx",
        "disks/disk/suspect.json": "suspicion",
      });
    } finally {
      await kit.close();
    }
  });

  test("a mark of an adoption that is half written says no more than that", async () => {
    for (const text of ["", '{"image":"/srv/web', "7\n"]) {
      writeFileSync(join(folder, "adopt.new"), text);
      expect(await inspect("adopt.new")).toEqual({
        code: 0,
        lines: [{ kind: "adoption", fileBytes: text.length, trouble: null }],
      });
    }
  });

  test("apply.lock tells its holder", async () => {
    writeFileSync(
      join(folder, "apply.lock"),
      '{"host":"h","pid":7,"since":1700000000000,"identity":"web","instance":"i"}\n',
    );
    const { code, text } = await run(["apply.lock"]);
    expect(code).toBe(0);
    expect(text).toMatch(/pid +7\n/);
    expect(text).toContain("2023-11-14 22:13:20Z");
  });

  test.each(files.filter(([name]) => /json|undo/.test(name)))("%s, cut short", async (name) => {
    const bytes = readFileSync(join(disk, name));
    const path = join(folder, basename(name));
    writeFileSync(path, bytes.subarray(0, name.endsWith(".undo") ? 40 : bytes.length - 3));
    const { code, lines } = await inspect(path);
    expect(code).toBe(1);
    expect(lines[0]?.["trouble"]).toContain(basename(name));
  });

  test.each(files.filter(([name]) => name.endsWith("json")))("%s of a newer version", async (name) => {
    const newer = readFileSync(join(disk, name), "utf8").replace(/"version": 1/, '"version": 2');
    const path = join(folder, basename(name));
    writeFileSync(path, newer);
    const { code, lines } = await inspect(path);
    expect(code).toBe(1);
    expect(lines[0]?.["trouble"]).toMatch(/version 2/);
  });
});

describe("bitmap journals", () => {
  test.each(["open.rbj", "closed.rbj"])("%s is whole", async (name) => {
    const { code, lines } = await inspect(join(fixtures, "journal/v1", name));
    expect(code).toBe(0);
    expect(lines).toMatchObject([
      { kind: "bitmap journal", mode: "power", closed: name === "closed.rbj", trouble: null },
    ]);
  });

  test("damage is told in words, and what can be believed is shown", async () => {
    const bytes = readFileSync(join(fixtures, "journal/v1/open.rbj"));
    bytes[16_384 + 40] = 9;
    const path = join(folder, "copy of a journal");
    writeFileSync(path, bytes);
    const { code, lines } = await inspect(path);
    expect(code).toBe(1);
    expect(lines[0]).toMatchObject({ kind: "bitmap journal", mode: "power" });
    expect(lines[0]?.["trouble"]).toMatch(/batch 1 of its log is damaged/);
    writeFileSync(join(folder, "empty.rbj"), "");
    const { text } = await run([join(folder, "empty.rbj")]);
    expect(text).toMatch(/^bitmap journal\n.*trouble +.*it has no header/s);
  });
});
