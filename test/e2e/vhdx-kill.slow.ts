import { test } from "vitest";
import { needTools } from "./kit.ts";
import { killWriter } from "./vhdx-kill.ts";

test("a writer of a VHDX is killed at 10 random moments: each flush it told of is there, to us and to QEMU", async (t) => {
  needTools(t, "qemu-img");
  await killWriter(t, 10, 1);
});
