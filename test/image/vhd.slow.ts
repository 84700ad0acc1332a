/** VHD files as disks: what may be wrong with them, and what other readers get wrong. */
import { describe, expect, test } from "vitest";
import { MIB } from "../../src/base/units.ts";
import { ReplicationError } from "../../src/base/errors.ts";
import { sum } from "../../src/image/vhd/footer.ts";
import { openVhd } from "../../src/image/vhd/open.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { createScratch, type Scratch } from "../storage/scratch.ts";
import { extentsOf, pattern, type Piece, readerConformance, readRange } from "./conformance.ts";
import { buildVhd, dynamicHeaderAt, firstId, tableAt, vhdBytes, type VhdPlan, writeVhd } from "./vhd-kit.ts";
import { memoryStorage } from "./vhdx/kit.ts";

const storage = createNodeStorage();
const secondId = Buffer.alloc(16, 0x22);
const relative = (name: string) => ({ W2ru: Buffer.from(`.\\${name}`, "utf16le") });

for (const { name, type, payloadBlockBytes } of [
  { name: "fixed", type: "fixed", payloadBlockBytes: 0 },
  { name: "dynamic, payload blocks of 2 MiB", type: "dynamic", payloadBlockBytes: 2 * MIB },
  { name: "dynamic, payload blocks of 512 KiB", type: "dynamic", payloadBlockBytes: MIB / 2 },
] as const) {
  let scratch: Scratch | undefined;
  readerConformance({
    name: `VHD, ${name}`,
    sectorBytes: 512,
    sizeUnit: 512,
    // Sectors have 32-bit numbers in a table.
    sizeBytesMax: type === "fixed" ? 2 ** 41 : 2 ** 40,
    async open(sizeBytes, pieces) {
      scratch = await createScratch();
      const blocks = payloadBlockBytes === 0 ? {} : { payloadBlockBytes };
      await writeVhd(scratch.file("disk.vhd"), { sizeBytes, type, ...blocks, pieces: sectorsOf(pieces) });
      return (await openVhd(await storage.open(scratch.file("disk.vhd")), storage)).reader;
    },
    async clean() {
      await scratch?.remove();
    },
  });
}

{
  let scratch: Scratch | undefined;
  readerConformance({
    name: "VHD over a fixed one",
    sectorBytes: 512,
    sizeUnit: 512,
    sizeBytesMax: 2 ** 40,
    async open(sizeBytes, pieces) {
      scratch = await createScratch();
      const sectors = sectorsOf(pieces);
      const share = (rest: number): Piece[] => sectors.filter((_piece, index) => index % 2 === rest);
      await writeVhd(scratch.file("base.vhd"), { sizeBytes, type: "fixed", pieces: share(0) });
      await writeVhd(scratch.file("child.avhd"), {
        ...{ sizeBytes, type: "differencing", id: secondId, pieces: share(1) },
        parent: { id: firstId, locators: { MacX: Buffer.from("file://./base.vhd") } },
      });
      return (await openVhd(await storage.open(scratch.file("child.avhd")), storage)).reader;
    },
    async clean() {
      await scratch?.remove();
    },
  });
}

/** One piece a sector. */
function sectorsOf(pieces: readonly Piece[]): Piece[] {
  const sectors = new Map<number, Uint8Array>();
  for (const { offset, bytes } of pieces) {
    for (const [index, byte] of bytes.entries()) {
      const sector = Math.floor((offset + index) / 512);
      const content = sectors.get(sector) ?? new Uint8Array(512);
      content[(offset + index) % 512] = byte;
      sectors.set(sector, content);
    }
  }
  return [...sectors].map(([sector, bytes]) => ({ offset: sector * 512, bytes }));
}

const content = pattern(10_240, 3);
const dynamic: VhdPlan = { sizeBytes: 5 * MIB, type: "dynamic", pieces: [{ offset: 3 * MIB, bytes: content }] };

async function openBytes(bytes: Uint8Array, others: Readonly<Record<string, Uint8Array>> = {}) {
  const files = memoryStorage(new Map([["/images/disk.vhd", bytes], ...Object.entries(others)]));
  const chain = await openVhd(await files.open("/images/disk.vhd"), files).catch((error: unknown) => {
    expect(files.opened()).toBe(0);
    throw error;
  });
  return { ...chain, remarks: chain.files.flatMap(({ facts }) => facts.remarks) };
}

async function contentOf(bytes: Uint8Array, others?: Readonly<Record<string, Uint8Array>>): Promise<Buffer> {
  const { reader } = await openBytes(bytes, others);
  return Buffer.from(await readRange(reader, 0, reader.sizeBytes));
}

function expected(plan: VhdPlan): Buffer {
  const all = Buffer.alloc(plan.sizeBytes);
  for (const { offset, bytes } of plan.pieces ?? []) all.set(bytes, offset);
  return all;
}

const right = expected(dynamic);
const changed = (bytes: Buffer, change: (copy: Buffer) => void): Buffer => {
  const copy = Buffer.from(bytes);
  change(copy);
  return copy;
};

describe("footer and header", () => {
  const bytes = vhdBytes(dynamic);
  const end = bytes.length - 512;
  const resealed = (copy: Buffer, at: number): void => {
    copy.writeUInt32BE(sum(copy.subarray(at, at + 512), 64), at + 64);
  };

  test("C-22 the size is the current one, not the geometry's nor the original one", async () => {
    const other = changed(bytes, (copy) => {
      for (const at of [0, end]) {
        copy.writeBigUInt64BE(99n * 512n, at + 40);
        resealed(copy, at);
      }
    });
    const { reader, remarks } = await openBytes(other);
    expect(reader.sizeBytes).toBe(5 * MIB);
    expect(remarks).toEqual([]);
    expect((await contentOf(other)).equals(right)).toBe(true);
  });

  test("C-20 one damaged copy is no harm and is told; two are, unless they are the same", async () => {
    const first = changed(bytes, (copy) => copy.writeUInt8(1, 100));
    const last = changed(bytes, (copy) => copy.writeUInt8(1, end + 100));
    expect((await openBytes(first)).remarks).toEqual([expect.stringContaining("copy of the footer at the start")]);
    expect((await openBytes(last)).remarks).toEqual([expect.stringContaining("footer at the end is damaged")]);
    for (const file of [first, last]) expect((await contentOf(file)).equals(right)).toBe(true);
    const both = (a: number, b: number): Buffer =>
      changed(bytes, (copy) => {
        copy.writeUInt8(a, 100);
        copy.writeUInt8(b, end + 100);
      });
    await expect(openBytes(both(1, 2))).rejects.toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining("checksum of the footer wrong"),
    });
    // C-23: a tool writes them so.
    expect((await openBytes(both(1, 1))).remarks).toEqual([expect.stringContaining("same in both of its copies")]);
  });

  test("the first versions left out the last byte", async () => {
    expect((await contentOf(bytes.subarray(0, bytes.length - 1))).equals(right)).toBe(true);
    const plan: VhdPlan = { sizeBytes: MIB, type: "fixed", pieces: [{ offset: 512, bytes: content }] };
    const fixed = vhdBytes(plan);
    for (const file of [fixed, fixed.subarray(0, fixed.length - 1)]) {
      expect((await contentOf(file)).equals(expected(plan))).toBe(true);
    }
  });

  test("a fixed file that is shorter than its disk is cut short, whatever its footer says", async () => {
    const fixed = vhdBytes({ sizeBytes: MIB, type: "fixed" });
    await expect(openBytes(fixed.subarray(512))).rejects.toMatchObject({ code: "image-truncated" });
    await expect(openBytes(changed(fixed, (copy) => copy.writeUInt8(9, MIB + 300)))).rejects.toMatchObject({
      code: "image-damaged",
    });
  });

  test.each<[string, string, (copy: Buffer) => void]>([
    ["no dynamic header", "signature", (copy) => copy.fill(0, dynamicHeaderAt, dynamicHeaderAt + 8)],
    ["payload blocks of 3 MiB", "payload blocks of", (copy) => copy.writeUInt32BE(3 * MIB, dynamicHeaderAt + 32)],
    ["a table that is too short", "2 entries", (copy) => copy.writeUInt32BE(2, dynamicHeaderAt + 28)],
    ["a table beyond the file", "table at", (copy) => copy.writeBigUInt64BE(2n ** 62n, dynamicHeaderAt + 16)],
    [
      "a header beyond the file",
      "dynamic header at",
      (copy) => {
        for (const at of [0, end]) {
          copy.writeBigUInt64BE(2n ** 62n, at + 16);
          resealed(copy, at);
        }
      },
    ],
    [
      "an unknown type",
      "type 7",
      (copy) => {
        for (const at of [0, end]) {
          copy.writeUInt32BE(7, at + 60);
          resealed(copy, at);
        }
      },
    ],
    [
      "a disk of half a sector",
      "a disk of",
      (copy) => {
        for (const at of [0, end]) {
          copy.writeBigUInt64BE(700n, at + 48);
          resealed(copy, at);
        }
      },
    ],
  ])("%s is damage", async (_name, words, change) => {
    await expect(openBytes(changed(bytes, change))).rejects.toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining(words),
    });
  });
});

describe("payload blocks", () => {
  test("sectors that were never written are zeros, whatever lies there", async () => {
    const built = buildVhd(dynamic);
    const place = built.blockPlaces.get(1) ?? 0;
    const bytes = changed(vhdBytes(dynamic), (copy) => copy.fill(0x77, place + 512, place + 1024));
    expect((await contentOf(bytes)).equals(right)).toBe(true);
  });

  test.each([
    ["the copy of the footer", 0],
    ["the dynamic header", 2],
    ["the table", 3],
  ])("one that lies over %s is damage when it is read", async (words, sector) => {
    const bytes = changed(vhdBytes(dynamic), (copy) => copy.writeUInt32BE(sector, tableAt));
    const { reader } = await openBytes(bytes);
    await expect(readRange(reader, 0, 512)).rejects.toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining(words),
    });
    expect(Buffer.from(await readRange(reader, 3 * MIB, content.length)).equals(content)).toBe(true);
  });

  test("C-19 one that lies beyond the end of the file is an error, not zeros", async () => {
    const built = buildVhd(dynamic);
    const bytes = vhdBytes(dynamic).subarray(0, built.sizeBytes - MIB);
    const full = changed(bytes, (copy) =>
      copy.fill(0xff, built.blockPlaces.get(1) ?? 0, (built.blockPlaces.get(1) ?? 0) + 512),
    );
    const { reader, remarks } = await openBytes(full);
    expect(remarks).toEqual([expect.stringContaining("footer at the end is damaged or missing")]);
    await expect(readRange(reader, 4 * MIB - 512, 512)).rejects.toMatchObject({ code: "image-truncated" });
    const far = changed(vhdBytes(dynamic), (copy) => copy.writeUInt32BE(0x00ff_ffff, tableAt));
    const other = await openBytes(far);
    await expect(readRange(other.reader, 0, 512)).rejects.toMatchObject({ code: "image-truncated" });
  });
});

describe("differencing images", () => {
  const base: VhdPlan = { sizeBytes: 5 * MIB, type: "dynamic", pieces: [{ offset: 0, bytes: pattern(5 * MIB, 1) }] };
  const child: VhdPlan = {
    ...{ sizeBytes: 5 * MIB, type: "differencing", id: secondId },
    pieces: [{ offset: MIB, bytes: content }],
    parent: { id: firstId, locators: relative("base.vhd") },
  };
  const at = { "/images/base.vhd": vhdBytes(base) };

  test("C-13 are read over their parent, which is found by any of its names, and not without it", async () => {
    const merged = expected(base);
    merged.set(content, MIB);
    const windows = "C:\\vm\\base.vhd";
    for (const parent of [
      { id: firstId, locators: relative("base.vhd") },
      { id: firstId, locators: { W2ku: Buffer.from(windows, "utf16le") } },
      { id: firstId, locators: { MacX: Buffer.from("file:///elsewhere/base.vhd") } },
      { id: firstId, locators: {}, name: windows },
    ]) {
      const bytes = vhdBytes({ ...child, parent });
      expect((await contentOf(bytes, at)).equals(merged)).toBe(true);
      await expect(openBytes(bytes)).rejects.toMatchObject({
        code: "image-not-found",
        message: expect.stringContaining("/images/base.vhd"),
      });
    }
    const { reader } = await openBytes(vhdBytes(child), at);
    const extents = await extentsOf(reader, 0, 5 * MIB);
    expect(extents).toEqual([{ kind: "data", offset: 0, length: 5 * MIB }]);
  });

  test("another parent, one of another size, and a circle are refused", async () => {
    const bytes = vhdBytes(child);
    await expect(openBytes(bytes, { "/images/base.vhd": vhdBytes({ ...base, id: secondId }) })).rejects.toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining("which is another image"),
    });
    const larger = vhdBytes({ ...base, sizeBytes: 6 * MIB });
    await expect(openBytes(bytes, { "/images/base.vhd": larger })).rejects.toMatchObject({
      code: "image-format-unsupported",
      message: expect.stringMatching(/5242880.*6291456/),
    });
    const circle = vhdBytes({ ...child, parent: { id: secondId, locators: relative("disk.vhd") } });
    await expect(openBytes(circle)).rejects.toMatchObject({ code: "image-damaged" });
  });
});

describe("hostile files", () => {
  const fill = 0xa5;
  const plan: VhdPlan = {
    sizeBytes: 4 * MIB,
    type: "dynamic",
    pieces: [{ offset: 0, bytes: Buffer.alloc(2 * MIB, fill) }],
  };
  const bytes = vhdBytes(plan);

  async function outcome(file: Uint8Array): Promise<"error" | "read" | "strange"> {
    try {
      const { reader } = await openBytes(file);
      const length = Math.min(reader.sizeBytes, 8 * MIB);
      await extentsOf(reader, 0, length);
      reader.runs?.(0, length);
      for (let offset = 0; offset < length; offset += MIB / 2) {
        const some = await readRange(reader, offset, Math.min(8192, length - offset));
        if (some.some((byte) => byte !== 0 && byte !== fill)) return "strange";
      }
      return "read";
    } catch (error) {
      if (!(error instanceof ReplicationError)) throw error;
      return "error";
    }
  }

  test("cut at each 4 KiB", async () => {
    expect(await outcome(bytes)).toBe("read");
    for (let length = 0; length < bytes.length; length += 4096) await outcome(bytes.subarray(0, length));
    expect(await outcome(bytes.subarray(0, MIB))).toBe("error");
  });

  test("a bit of footer, header, table or bitmap", async () => {
    const counts = { error: 0, read: 0, strange: 0 };
    for (let at = 0; at < tableAt + 512 + 512; at++) {
      counts[await outcome(changed(bytes, (copy) => copy.writeUInt8((copy[at] ?? 0) ^ (1 << ((at * 5) % 8)), at)))]++;
    }
    expect(counts.error).toBeGreaterThan(20);
    // A payload block may begin at any sector: with another one of its table a bitmap is content, but no table of the file ever is.
    expect(counts.strange).toBeLessThan(4);
  });
});
