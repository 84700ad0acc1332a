/**
 * What a person has said of a disk and was answered stays said, whatever ends the process: the disk's own policy, and holds. A crash at every operation, in
 * every way; and each sync of it, taken out, is missed.
 */
import { expect, test } from "vitest";
import {
  createSimulatedDisk,
  type Fault,
  type Operation,
  type SimulatedDisk,
} from "../../src/testing/simulated-storage.ts";
import type { Store } from "../../src/replica/store.ts";
import { powerLosses } from "./power-losses.ts";
import { apply, commitFacts, diskName, geometry, openTestStore, openWriter, storePath } from "./simulated-store.ts";

type Fate = (operation: Operation) => Fault | undefined;

interface Wishes {
  readonly keep: string | undefined;
  /** Who holds each point. */
  readonly holds: readonly (string | undefined)[];
}

const keep = "last=7,daily=3";
const steps: readonly (readonly [change: (store: Store) => Promise<void>, then: Wishes])[] = [
  [(store) => store.setPolicy(diskName, "last=5"), { keep: "last=5", holds: [undefined, undefined] }],
  [(store) => store.setPolicy(diskName, keep), { keep, holds: [undefined, undefined] }],
  [(store) => hold(store, 1, "alice"), { keep, holds: ["alice", undefined] }],
  [(store) => hold(store, 2, "bob"), { keep, holds: ["alice", "bob"] }],
  [(store) => store.release(diskName, 1, "alice"), { keep, holds: [undefined, "bob"] }],
  [(store) => store.setPolicy(diskName, undefined), { keep: undefined, holds: [undefined, "bob"] }],
  [(store) => store.release(diskName, 2, "anybody"), { keep: undefined, holds: [undefined, undefined] }],
];
const before: Wishes = { keep: undefined, holds: [undefined, undefined] };

function hold(store: Store, point: number, owner: string): Promise<void> {
  return store.hold(diskName, point, { owner, until: undefined });
}

/** A disk with two points, durable. */
async function prepare(): Promise<SimulatedDisk> {
  const machine = createSimulatedDisk();
  const process = machine.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  const shape = geometry(8192);
  await store.create(diskName, { geometry: shape, owner: "sender", sectorBytes: 512 });
  const writer = await openWriter(store);
  for (const value of [1, 2]) {
    await writer.begin();
    await apply(writer, process.lanes, new Map([[0, value]]));
    await writer.commit(commitFacts(`c${value}`));
  }
  await writer.release();
  await store.close();
  process.kill();
  return machine;
}

async function wishesOn(machine: SimulatedDisk): Promise<Wishes> {
  const process = machine.start();
  const store = await openTestStore(process);
  const policy = await store.policyOf(diskName);
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  process.kill();
  return { keep: policy.own ? policy.keep : undefined, holds: points.map((point) => point.hold?.owner) };
}

/** Killed before operation `at`; then power is lost, or not. Returns false when all was through before. */
async function crashAt(at: number, loss: string, also: Fate = () => undefined): Promise<boolean> {
  const machine = await prepare();
  const fault: Fate = (operation) => (operation.index === at ? { kind: "kill" } : also(operation));
  const process = machine.start({ fault });
  let answered = 0;
  let last = before;
  try {
    const store = await openTestStore(process);
    for (const [change, then] of steps) {
      await change(store);
      last = then;
      answered++;
    }
  } catch (error) {
    if (!process.dead) throw error;
  }
  const ended = !process.dead;
  process.kill();
  const survives = ways[loss];
  if (survives !== undefined) machine.losePower(survives(at));
  const found = await wishesOn(machine);
  // What was not answered yet may have been done, or not.
  const next = steps[answered]?.[1] ?? last;
  expect([last, next], `after ${answered} answers`).toContainEqual(found);
  return !ended;
}

const ways: typeof powerLosses = {
  ...powerLosses,
  "power lost, names survive and content does not": () => (what) => what === "entry",
};
const losses = ["killed", ...Object.keys(ways)];

test.each(losses)("a crash at every operation: %s", async (loss) => {
  let at = 0;
  while (await crashAt(at, loss)) at++;
  expect(at).toBeGreaterThan(30);
});

test("a failure of every operation is told, and what was said before stays", async () => {
  let told = 0;
  for (let at = 0; ; at++) {
    const machine = await prepare();
    let met = false;
    const process = machine.start({
      fault: ({ index }) => {
        met ||= index === at;
        return index === at ? { kind: "errno", errno: "EIO" } : undefined;
      },
    });
    const store = await openTestStore(process).catch(() => undefined);
    let state = before;
    let unsure: Wishes | undefined;
    for (const [change, then] of steps) {
      if (store === undefined) break;
      try {
        await change(store);
        state = then;
      } catch {
        told++;
        unsure = then;
        break;
      }
    }
    if (!met) break;
    process.kill();
    machine.losePower(() => false);
    expect([state, unsure]).toContainEqual(await wishesOn(machine));
  }
  expect(told).toBeGreaterThan(20);
});

// Each sync is missed -------------------------------------------------------------------------------------------------

type Test = (operation: Operation, last: Operation | undefined) => boolean;

const fresh =
  (path: RegExp): Test =>
  (operation) =>
    operation.kind === "sync" && path.test(operation.path);
const nameAfter =
  (kind: Operation["kind"], path: RegExp): Test =>
  (operation, last) =>
    operation.kind === "sync-directory" && last?.kind === kind && path.test(last.path);
const renameOf =
  (path: RegExp): ((operation: Operation) => boolean) =>
  (operation) =>
    operation.kind === "rename" && path.test(operation.path);

const policy = /\/keep\.json$/;
const point = /\/points\/\d{10}\.json$/;
const edges: Readonly<Record<string, readonly [test: Test, until?: (operation: Operation) => boolean]>> = {
  "sync of keep.json.new": [fresh(/\/keep\.json\.new$/)],
  "sync of keep.json.new → rename": [fresh(/\/keep\.json\.new$/), renameOf(policy)],
  "sync of the disk's directory after keep.json": [nameAfter("rename", policy)],
  "sync of the disk's directory after keep.json is gone": [nameAfter("unlink", policy)],
  "sync of the record of a point that is held": [fresh(/\/points\/\d{10}\.json\.new$/)],
  "sync of the record of a point that is held → rename": [fresh(/\/points\/\d{10}\.json\.new$/), renameOf(point)],
  "sync of points after the record of a point that is held": [nameAfter("rename", point)],
};

test.each(Object.keys(edges))("without it something that was answered is lost: %s", async (name) => {
  const [isEdge, behind] = edges[name] ?? [];
  for (const loss of losses) {
    for (let at = 0; ; at++) {
      let last: Operation | undefined;
      let met = false;
      const change: Fate = (operation) => {
        const isIt = isEdge?.(operation, last) === true;
        last = operation;
        if (!isIt) return undefined;
        met = true;
        return behind === undefined ? { kind: "skip" } : { kind: "late", until: behind };
      };
      const outcome = await crashAt(at, loss, change).catch(() => "lost" as const);
      if (outcome === "lost") return;
      if (outcome) continue;
      expect(met).toBe(true);
      break;
    }
  }
  expect.fail("nothing is lost");
});
