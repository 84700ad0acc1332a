/** Every byte of everything in small files that is not content, with a bit wrong. */
import { describe, expect, test } from "vitest";
import { KIB, MIB } from "../../../src/base/units.ts";
import { bytesOf } from "../pieces.ts";
import { flips, hostilePlans, range } from "./hostile.ts";
import { buildVhdx, places } from "./kit.ts";

const [header1, header2] = places.headers;
const [table1, table2] = places.regionTables;

describe.each(hostilePlans.filter(({ plan }) => plan.log !== undefined))("a file that is $name", ({ plan }) => {
  const whole = bytesOf(buildVhdx(plan));

  test.each([
    ["the identifier", 0, 4 * KIB],
    ["header 1", header1, 4 * KIB],
    ["header 2", header2, 4 * KIB],
    ["region table 1", table1, 64 * KIB],
    ["region table 2", table2, 64 * KIB],
    ["the log: its entries and a sector behind them", places.log, 16 * KIB],
    ["the metadata", places.metadata, 66 * KIB],
    ["the BAT: its entries, up to the bitmap's and behind it", places.bat, 33 * KIB],
  ])("%s", async (_name, at, length) => {
    const { errors, read } = await flips(whole, range(at, at + length));
    expect(errors + read).toBe(length);
  });

  test("the rest of the BAT and of the log: some of it", async () => {
    const rest = [
      ...range(places.bat + 33 * KIB, places.bat + MIB, 509),
      ...range(places.log + 16 * KIB, places.log + MIB, 509),
    ];
    expect((await flips(whole, rest)).errors).toBe(0);
  });
});
