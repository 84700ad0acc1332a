/** The meetings of locks.slow.ts at every step of the first, over a raw replica and over a VHDX. */
import { describe, expect, test } from "vitest";
import { MIB } from "../../src/base/units.ts";
import { meetAt, meetings } from "./meetings.ts";

for (const format of ["raw", "vhdx"] as const) {
  describe(`${format}: nothing is lost when`, () => {
    test.each(Object.keys(meetings))("%s", async (name) => {
      let at = 0;
      while (await meetAt(name, at, { replica: { format, payloadBlockBytes: MIB } })) at++;
      expect(at).toBeGreaterThan(7);
    });
  });
}
