/** Each operation of each life is the last one of its process, in each way, or fails once, and each read fails once; with a raw replica, and with a VHDX. */
import { describe } from "vitest";
import { MIB } from "../../src/base/units.ts";
import { crashTests } from "./crash-kit.ts";
import { failedReadTests } from "./failed-reads.ts";

for (const format of ["raw", "vhdx"] as const) {
  describe(format, () => {
    crashTests({
      chosen: () => true,
      whole: () => true,
      options: { twice: true, replica: { format, payloadBlockBytes: MIB } },
    });
    failedReadTests(() => 1, { replica: { format, payloadBlockBytes: MIB } });
  });
}
