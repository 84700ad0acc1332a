import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { detectFormat, formatAdvice, formatTitle, promisedFormat, readingAdvice } from "../../src/image/detect.ts";

function head(text: string, at = 0): Uint8Array {
  const bytes = Buffer.alloc(512);
  bytes.write(text, at, "latin1");
  return bytes;
}
const nothing = new Uint8Array(512);

describe("C-23 formats are known by their content", () => {
  test.each([
    ["vhdx", "vhdxfile", 0],
    ["vhd", "conectix", 0],
    ["qcow2", "QFI\xfb\0\0\0\x03", 0],
    ["vmdk", "KDMV\x01\0\0\0", 0],
    ["vmdk", "COWD", 0],
    ["vmdk", "\xbe\xba\xfe\xca\0\0\0\0", 0],
    ["vmdk", "# Disk DescriptorFile\nversion=1", 0],
    ["vdi", "\x7f\x10\xda\xbe", 64],
    ["qed", "QED\0", 0],
    ["parallels", "WithoutFreeSpace", 0],
    ["parallels", "WithouFreSpacExt", 0],
    ["gzip", "\x1f\x8b\x08", 0],
    ["bzip2", "BZh91AY&SY", 0],
    ["xz", "\xfd7zXZ\0", 0],
    ["zstd", "\x28\xb5\x2f\xfd", 0],
    ["lz4", "\x04\x22\x4d\x18", 0],
    ["zip", "PK\x03\x04", 0],
  ] as const)("%s by %j", (format, text, at) => {
    expect(detectFormat({ head: head(text, at), tail: nothing })).toBe(format);
    // One byte further it is the content of a raw disk.
    expect(detectFormat({ head: head(text, at + 1), tail: nothing })).toBe("raw");
  });

  test("a fixed VHD by its footer, of 512 bytes and of 511", () => {
    expect(detectFormat({ head: nothing, tail: head("conectix") })).toBe("vhd");
    expect(detectFormat({ head: nothing, tail: head("conectix", 1) })).toBe("vhd");
    expect(detectFormat({ head: nothing, tail: head("conectix", 2) })).toBe("raw");
    expect(detectFormat({ head: nothing.subarray(0, 511), tail: head("conectix").subarray(0, 511) })).toBe("vhd");
  });

  test("an MBR, an ISO and images shorter than any signature are raw", () => {
    const mbr = Buffer.alloc(512);
    mbr.writeUInt16LE(0xaa55, 510);
    expect(detectFormat({ head: mbr, tail: nothing })).toBe("raw");
    const empty = new Uint8Array(0);
    expect(detectFormat({ head: empty, tail: empty })).toBe("raw");
    expect(detectFormat({ head: Buffer.from("vhdxfil"), tail: Buffer.from("vhdxfil") })).toBe("raw");
  });

  test("any bytes are an answer and never an exception", () => {
    const bytes = fc.uint8Array({ maxLength: 600 });
    fc.assert(
      fc.property(bytes, bytes, (first, last) => {
        expect(formatTitle(detectFormat({ head: first, tail: last }))).toMatch(/\w/);
      }),
    );
  });
});

test("C-16 names that promise a format", () => {
  expect(promisedFormat("disk.VHDX")).toBe("vhdx");
  expect(promisedFormat("a.b.avhdx")).toBe("vhdx");
  expect(promisedFormat("disk.vhd")).toBe("vhd");
  expect(promisedFormat("disk.qcow2")).toBe("qcow2");
  expect(promisedFormat("disk.vmdk")).toBe("vmdk");
  for (const name of ["disk.raw", "disk.img", "disk", "vhdx", "disk.vhdx.raw", "disk.constructor", ""]) {
    expect(promisedFormat(name)).toBeUndefined();
  }
});

test("the advice is commands one can paste", () => {
  expect(formatAdvice("vhd", "/images/a.vhd")).toContain(
    "qemu-img convert -f vpc -O raw /images/a.vhd /images/a.vhd.raw",
  );
  expect(formatAdvice("qcow2", "/my images/it's")).toContain(`'/my images/it'\\''s'`);
  expect(formatAdvice("xz", "/a.xz")).toContain("unxz --keep /a.xz");
  expect(readingAdvice("xz", "/a.xz")).toContain("unxz --keep /a.xz");
});

test("what QEMU reads is served by it: both commands, quoted, on lines of their own", () => {
  const lines = (path: string): string[] => readingAdvice("qcow2", path).split("\n");
  expect(lines("/i/a.qcow2")).toContain("  qemu-nbd -r -t -f qcow2 -k /i/a.qcow2.sock /i/a.qcow2");
  expect(lines("/i/a.qcow2")).toContain(
    "  replicate send 'nbd+unix:///?socket=/i/a.qcow2.sock' HOST:PORT/DISK --tls DIR/NAME",
  );
  expect(lines("/my i/it's")).toContain(`  qemu-nbd -r -t -f qcow2 -k '/my i/it'\\''s.sock' '/my i/it'\\''s'`);
  expect(readingAdvice("vmdk", "/a")).toContain(" -f vmdk ");
  // A unix socket's path is short.
  const long = `/${"d".repeat(110)}`;
  expect(lines(long)).toContain(`  qemu-nbd -r -t -f qcow2 -k /tmp/replicate-nbd.sock ${long}`);
});
