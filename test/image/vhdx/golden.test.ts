/**
 * VHDX files of our own making, byte for byte: what is written stays what it is, and what was written is read. UPDATE_GOLDEN=1 writes them anew.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Random } from "../../../src/base/random.ts";
import { MIB } from "../../../src/base/units.ts";
import { openImage } from "../../../src/image/open-image.ts";
import { createVhdx, type VhdxShape } from "../../../src/image/vhdx/create.ts";
import { openVhdxWriter } from "../../../src/image/vhdx/writer.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import { createScratch, hasCommand, type Scratch } from "../../storage/scratch.ts";
import { pattern, type Piece, readRange } from "../conformance.ts";
import { buildVhdx, guids, type VhdxPlan, writeVhdx } from "./kit.ts";
import { askLibvhdi, noLibvhdi } from "./libvhdi.ts";

const folder = join(import.meta.dirname, "../../../fixtures/vhdx");
const storage = createNodeStorage();
const sizeBytes = 37 * MIB + 512 * 8;
const pieces: readonly Piece[] = [
  { offset: 0, bytes: pattern(512, 1) },
  { offset: MIB - 512, bytes: pattern(4096, 2) },
  { offset: 33 * MIB, bytes: pattern(8192, 3) },
  { offset: sizeBytes - 4096, bytes: pattern(4096, 4) },
];

/** The same chance each time. */
function counting(): Random {
  let count = 0;
  return {
    uuid: () => `00000000-0000-4000-8000-${(++count).toString(16).padStart(12, "0")}`,
    bytes: (length) => new Uint8Array(length).fill(++count),
  };
}

async function written(path: string, shape: Omit<VhdxShape, "sizeBytes">): Promise<void> {
  const random = counting();
  const file = await storage.open(path, { write: true, exclusive: true });
  await createVhdx(file, { sizeBytes, ...shape }, random);
  const disk = await openVhdxWriter(file, { storage, random });
  for (const { offset, bytes } of pieces.slice(0, 2)) await disk.write(bytes, offset);
  await disk.flush();
  for (const { offset, bytes } of pieces.slice(2)) await disk.write(bytes, offset);
  await disk.flush();
  await disk.close();
}

const base: VhdxPlan = { sizeBytes, payloadBlockBytes: 2 * MIB, pieces };

/** Block 1 moves to where block 0 is, by a log alone. */
function dirty(): VhdxPlan {
  const plan: VhdxPlan = { sizeBytes, payloadBlockBytes: 32 * MIB, pieces: pieces.slice(0, 1) };
  const built = buildVhdx(plan);
  const page = Buffer.alloc(4096);
  page.writeBigUInt64LE(BigInt(built.blockPlaces.get(0) ?? 0) | 6n, built.entryOf(1) - built.entryOf(0));
  const sectors = [{ offset: built.entryOf(0), bytes: page }];
  return {
    ...plan,
    log: [{ sequence: 2n ** 53n + 1n, tail: 0, flushed: built.sizeBytes, last: built.sizeBytes, sectors }],
  };
}

interface Golden {
  readonly make: (path: string) => Promise<unknown>;
  readonly content: readonly Piece[];
  /** That QEMU reads too. */
  readonly qemu: boolean;
  readonly parent?: string;
}

const golden: Readonly<Record<string, Golden>> = {
  "dynamic.vhdx": { make: (path) => written(path, {}), content: pieces, qemu: true },
  "fixed-4k.vhdx": {
    make: (path) => written(path, { fixed: true, sectorBytes: 4096, payloadBlockBytes: 8 * MIB }),
    content: pieces,
    qemu: false,
  },
  "base.vhdx": { make: (path) => writeVhdx(path, base), content: pieces, qemu: true },
  "child.avhdx": {
    make: (path) =>
      writeVhdx(path, {
        ...{ sizeBytes, payloadBlockBytes: 32 * MIB, dataGuid: guids.log },
        parent: { parent_linkage: `{${guids.data}}`, relative_path: ".\\base.vhdx" },
        pieces: [{ offset: 512, bytes: pattern(1024, 9) }],
      }),
    content: [...pieces, { offset: 512, bytes: pattern(1024, 9) }],
    qemu: false,
    parent: "base.vhdx",
  },
  "dirty-log.vhdx": {
    make: (path) => writeVhdx(path, dirty()),
    content: [{ offset: 32 * MIB, bytes: pattern(512, 1) }],
    qemu: true,
  },
};

let scratch: Scratch;
beforeAll(async () => {
  scratch = await createScratch();
  await mkdir(scratch.file("made"));
  for (const [name, { make }] of Object.entries(golden)) {
    await make(scratch.file(`made/${name}`));
    const packed = join(folder, `${name}.gz`);
    if (process.env["UPDATE_GOLDEN"] === "1") {
      await mkdir(dirname(packed), { recursive: true });
      await writeFile(packed, gzipSync(await readFile(scratch.file(`made/${name}`)), { level: 9 }));
    }
    await writeFile(scratch.file(name), gunzipSync(await readFile(packed)));
  }
});
afterAll(() => scratch.remove());

const noQemu = hasCommand("qemu-img", "--version") ? "" : " (without qemu-img)";

describe.each(Object.entries(golden))("%s", (name, { content, qemu }) => {
  test("is made as it was", async () => {
    const made = await readFile(scratch.file(`made/${name}`));
    expect(made.equals(await readFile(scratch.file(name)))).toBe(true);
  });

  test(`holds what was written to it${noQemu}`, async () => {
    const right = Buffer.alloc(sizeBytes);
    for (const { offset, bytes } of content) right.set(bytes, offset);
    const image = await openImage(scratch.file(name), { storage });
    expect(right.equals(await readRange(image.reader, 0, sizeBytes))).toBe(true);
    await image.reader.close();
    if (!qemu || noQemu !== "") return;
    await writeFile(scratch.file("right.raw"), right);
    execFileSync("qemu-img", ["check", "-q", "-r", "all", "-f", "vhdx", scratch.file(`made/${name}`)], {
      stdio: "pipe",
    });
    const compare = [
      "compare",
      "-q",
      "-f",
      "vhdx",
      "-F",
      "raw",
      scratch.file(`made/${name}`),
      scratch.file("right.raw"),
    ];
    execFileSync("qemu-img", compare, { stdio: "pipe" });
  });
});

test.skipIf(noLibvhdi !== "")(`the chain is to libvhdi what it is here${noLibvhdi}`, async () => {
  const theirs = askLibvhdi([scratch.file("child.avhdx"), scratch.file("base.vhdx")]);
  const image = await openImage(scratch.file("child.avhdx"), { storage });
  const ours = createHash("sha256")
    .update(await readRange(image.reader, 0, sizeBytes))
    .digest("hex");
  await image.reader.close();
  expect(theirs).toEqual({ sizeBytes, digest: ours });
});
