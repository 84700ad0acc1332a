/** A copy in files, and one that takes its place: a crash at every operation leaves a whole copy or none, and each sync of it, taken out, is missed. */
import { describe, expect, test } from "vitest";
import { createMemoryImage } from "../../src/image/memory.ts";
import { openSeed } from "../../src/replication/seed/reader.ts";
import {
  createSimulatedDisk,
  type DiskOptions,
  type Fault,
  type Operation,
} from "../../src/testing/simulated-storage.ts";
import { randomBytes } from "../random.ts";
import { powerLosses } from "../replica/power-losses.ts";
import { applySeed, blockBytes, bytesOf, exportSeed, storePath, usb } from "./seed-kit.ts";

type Fate = (operation: Operation) => Fault | undefined;

async function makeImage(): Promise<ReturnType<typeof createMemoryImage>> {
  const image = createMemoryImage(9 * blockBytes);
  await image.write(randomBytes(6 * blockBytes), blockBytes);
  return image;
}

const first = await makeImage();
const second = await makeImage();
const contents = { first: await bytesOf(first), second: await bytesOf(second) } as const;
type Copy = keyof typeof contents | "none";

const ways: typeof powerLosses = {
  ...powerLosses,
  "power lost, names survive and content does not": () => (what) => what === "entry",
};
const losses = ["killed", ...Object.keys(ways)];

/** Both exports, killed before operation `at`; then power is lost, or not. Returns false when all was through before. Throws when what is left is not right. */
async function crashAt(at: number, loss: string, also: Fate = () => undefined, disk?: DiskOptions): Promise<boolean> {
  const machine = createSimulatedDisk(disk);
  const process = machine.start({
    fault: (operation) => (operation.index === at ? { kind: "kill" } : also(operation)),
  });
  let allowed: readonly Copy[] = ["none", "first"];
  try {
    await exportSeed(process, first);
    // Killed before it does anything, the second one has changed nothing.
    allowed = process.operations === at ? ["first"] : ["first", "none", "second"];
    await exportSeed(process, second, { overwrite: true });
    allowed = ["second"];
  } catch (error) {
    if (!process.dead) throw error;
  }
  const ended = !process.dead;
  process.kill();
  const survives = ways[loss];
  if (survives !== undefined) machine.losePower(survives(at));
  const seed = await openSeed(machine.start(), usb).catch((error: unknown) => {
    expect(error).toMatchObject({ code: "seed-not-found" });
  });
  let found: Copy = "none";
  if (seed !== undefined) {
    expect(await applySeed(machine.start())).toMatchObject({ created: true, point: 1 });
    const bytes = Buffer.from(machine.peek(`${storePath}/disks/disk/replica.raw`) ?? []);
    found = bytes.equals(contents.first) ? "first" : "second";
    if (found === "second") expect(bytes.equals(contents.second)).toBe(true);
  }
  expect(allowed).toContain(found);
  return !ended;
}

/** What a loss of power leaves of changed names: those up to some moment, or any of them. */
const orders = ["prefix", "any"] as const;

describe.each(orders)("of names, %s survive", (entriesSurvive) => {
  test.each(losses)("a crash at every operation: %s", async (loss) => {
    let at = 0;
    while (await crashAt(at, loss, undefined, { entriesSurvive })) at++;
    expect(at).toBeGreaterThan(40);
  });
});

// Each sync is missed -------------------------------------------------------------------------------------------------

type Test = (operation: Operation, last: Operation | undefined) => boolean;

const manifest = /\.seed\.json$/;
const freshManifest = /\.seed\.json\.new$/;
const isSyncOf =
  (path: RegExp): Test =>
  ({ kind, path: at }) =>
    kind === "sync" && path.test(at);
const isNameSync =
  (directory: string, after: Operation["kind"], path: RegExp): Test =>
  (operation, last) =>
    operation.kind === "sync-directory" && operation.path === directory && last?.kind === after && path.test(last.path);
const renamed = ({ kind, path }: Operation): boolean => kind === "rename" && manifest.test(path);

const edges: Readonly<Record<string, readonly [test: Test, until?: (operation: Operation) => boolean]>> = {
  "sync of the parent of the folder": [isNameSync("/", "make-directory", /^\/usb$/)],
  "sync of a part": [isSyncOf(/\.frames$/)],
  "sync of a part → manifest": [isSyncOf(/\.frames$/), renamed],
  "sync of the folder after its parts": [isNameSync(usb, "sync", /\.frames$/)],
  "sync of the manifest": [isSyncOf(freshManifest)],
  "sync of the manifest → rename": [isSyncOf(freshManifest), renamed],
  "sync of the folder after the manifest": [isNameSync(usb, "rename", manifest)],
  "sync of the folder after a manifest is gone": [isNameSync(usb, "unlink", manifest)],
};

test.each(Object.keys(edges))("without it there is half a copy, or one that was promised is lost: %s", async (name) => {
  const [isEdge, behind] = edges[name] ?? [];
  let met = false;
  for (const [loss, entriesSurvive] of losses.flatMap((way) => orders.map((order) => [way, order] as const))) {
    for (let at = 0; ; at++) {
      let last: Operation | undefined;
      const change: Fate = (operation) => {
        const isIt = isEdge?.(operation, last) === true;
        last = operation;
        if (!isIt) return undefined;
        met = true;
        return behind === undefined ? { kind: "skip" } : { kind: "late", until: behind };
      };
      const outcome = await crashAt(at, loss, change, { entriesSurvive }).catch(() => "lost" as const);
      if (outcome === "lost") {
        expect(met).toBe(true);
        return;
      }
      if (!outcome) break;
    }
  }
  expect.fail(met ? "nothing is lost" : "there is no such sync");
});
