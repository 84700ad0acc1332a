/** A real ext4 file system: equal, mountable, and a delta that costs little more than what changed. */
import { cpSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, test } from "vitest";
import { makePki, type Pki, root, suiteScope, tempDir } from "./kit.ts";
import { replicateRealImage } from "./real-image.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test("ext4 from a real tree: replica equal and clean, deltas within 5 % of the changed parts", async (t) => {
  const tree = join(tempDir(t), "tree");
  mkdirSync(tree);
  for (const name of ["src", "docs", "dist", "node_modules/@types"]) {
    cpSync(join(root, name), join(tree, name), { recursive: true });
  }
  await replicateRealImage(t, pki, { imageMiB: 96, tree, writes: 600 });
});
