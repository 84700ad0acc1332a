import { constants } from "node:os";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findData, type Seek } from "../../src/storage/find-data.ts";

const { ENXIO, EINVAL, EIO } = constants.errno;
const GIB = 2 ** 30;

/** Walks a file as a scan does, and fails when it does not end. */
function walk(seek: Seek, sizeBytes: number): { start: number; end: number }[] {
  const found: { start: number; end: number }[] = [];
  let position = 0;
  for (let step = 0; step < 10_000; step++) {
    const data = findData(seek, position, sizeBytes);
    if (data === undefined) return found;
    expect(data.start).toBeGreaterThanOrEqual(position);
    expect(data.end).toBeGreaterThan(data.start);
    expect(data.end).toBeLessThanOrEqual(sizeBytes);
    found.push(data);
    position = data.end;
  }
  throw new Error("the walk does not end");
}

describe("C-38 SEEK_DATA inside the final hole", () => {
  // 4 KiB of data, then a hole of 1 GiB.
  const sizeBytes = 4096 + GIB;
  const honest = (inHole: (offset: number) => number): Seek => {
    return (offset, what) => {
      if (what === "hole") return offset < 4096 ? 4096 : offset;
      return offset < 4096 ? offset : inHole(offset);
    };
  };

  test("ENXIO: the hole is a hole", () => {
    expect(
      walk(
        honest(() => -ENXIO),
        sizeBytes,
      ),
    ).toEqual([{ start: 0, end: 4096 }]);
  });

  test("the file's size: the hole is a hole", () => {
    expect(
      walk(
        honest(() => sizeBytes),
        sizeBytes,
      ),
    ).toEqual([{ start: 0, end: 4096 }]);
    expect(
      walk(
        honest(() => sizeBytes + 1),
        sizeBytes,
      ),
    ).toEqual([{ start: 0, end: 4096 }]);
  });

  test("the asked offset, which SEEK_HOLE denies: counts as data, once", () => {
    expect(
      walk(
        honest((offset) => offset),
        sizeBytes,
      ),
    ).toEqual([
      { start: 0, end: 4096 },
      { start: 4096, end: sizeBytes },
    ]);
  });

  test("a position before the asked one, or an error: counts as data, once", () => {
    for (const answer of [0, -EINVAL, -EIO]) {
      expect(
        walk(
          honest(() => answer),
          sizeBytes,
        ),
      ).toEqual([
        { start: 0, end: 4096 },
        { start: 4096, end: sizeBytes },
      ]);
    }
  });
});

test("whatever a file system answers, a walk ends and stays within the file", () => {
  const answer = fc.oneof(fc.integer({ min: -200, max: 5000 }), fc.constant(-ENXIO));
  fc.assert(
    fc.property(fc.array(answer, { minLength: 1 }), fc.nat(4000), (answers, sizeBytes) => {
      let next = 0;
      walk(() => answers[next++ % answers.length] ?? 0, sizeBytes);
    }),
  );
});

test("an honest file system is believed to the byte", () => {
  fc.assert(
    fc.property(fc.array(fc.boolean(), { maxLength: 60 }), (isData) => {
      const size = isData.length;
      const seek: Seek = (offset, what) => {
        for (let at = offset; at < size; at++) if (isData[at] === (what === "data")) return at;
        return what === "hole" ? size : -ENXIO;
      };
      const marked = new Array<boolean>(size).fill(false);
      for (const { start, end } of walk(seek, size)) marked.fill(true, start, end);
      expect(marked).toEqual(isData);
    }),
  );
});
