/** A file system with at least 1 GiB of files, 1 % of it changed. */
import { cpSync, existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, test } from "vitest";
import { makePki, type Pki, root, runTool, suiteScope, tempDir } from "./kit.ts";
import { replicateRealImage } from "./real-image.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test("ext4 with 1 GiB of files: replica equal and clean, deltas within 5 % of the changed parts", async (t) => {
  const tree = join(tempDir(t), "tree");
  mkdirSync(tree);
  for (let copy = 0, mebibytes = 0; mebibytes < 1_024; copy++) {
    const target = join(tree, `copy-${String(copy)}`);
    for (const name of ["src", "dist", "node_modules"]) {
      if (existsSync(join(root, name))) cpSync(join(root, name), join(target, name), { recursive: true });
    }
    mebibytes = Number(/^\d+/.exec(runTool("du", ["-sm", tree]).stdout)?.[0]);
  }
  await replicateRealImage(t, pki, { imageMiB: 3_072, tree, writes: 7_800 });
});
