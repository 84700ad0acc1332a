import { expect, test } from "vitest";
import { MIB } from "../../src/base/units.ts";
import { EarlyWriteback } from "../../src/replication/early-writeback.ts";

test("what was written goes to the device once there is enough of it, as one stretch", () => {
  const writeback = new EarlyWriteback();
  expect(writeback.take()).toBeUndefined();
  writeback.wrote(500 * MIB, 540 * MIB, 20 * MIB);
  expect(writeback.take()).toBeUndefined();
  writeback.wrote(100 * MIB, 120 * MIB, 12 * MIB);
  expect(writeback.take()).toEqual({ offset: 100 * MIB, length: 440 * MIB });
  expect(writeback.take()).toBeUndefined();
  writeback.wrote(600 * MIB, 700 * MIB, 32 * MIB);
  expect(writeback.take()).toEqual({ offset: 600 * MIB, length: 100 * MIB });
});

test("what went past the page cache is nothing to write", () => {
  const writeback = new EarlyWriteback();
  writeback.wrote(0, 900 * MIB, 0);
  writeback.wrote(900 * MIB, 990 * MIB, 32 * MIB);
  expect(writeback.take()).toEqual({ offset: 900 * MIB, length: 90 * MIB });
});
