/** Ends a life of a disk at one operation, in one way, and looks at what is left. */
import type { NewDisks } from "../../src/replica/store.ts";
import { expect } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import type { Survives } from "../../src/testing/simulated-node.ts";
import {
  createSimulatedDisk,
  type DiskOptions,
  type Fault,
  type Operation,
  type ProcessOptions,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import {
  checkAfterCrash,
  createDisk,
  createHistory,
  during,
  hearOf,
  type History,
  withWriter,
} from "./crash-history.ts";
import type { Life, World } from "./crash-lives.ts";
import { openLogOf } from "./crash-promises.ts";
import { createChance, diskName, openTestStore, openWriter, storePath } from "./simulated-store.ts";

/** One operation of a life. */
export interface Step extends Operation {
  /** Counted over all processes of the life. */
  readonly index: number;
  /** What the life was doing. */
  readonly doing: string;
  /** Operations of the same process before it. */
  readonly past: readonly Operation[];
}

/** What is taken out of the program. */
export interface Change {
  readonly fault?: (step: Step) => Fault | undefined;
  readonly dropsCache?: ProcessOptions["dropsCache"];
  /** Put between the store and its storage. */
  readonly wrap?: (process: SimulatedProcess) => SimulatedProcess;
}

/** A life being lived. */
class Lived implements World {
  operations = 0;
  reads = 0;
  readFault: ProcessOptions["readFault"];
  /** Now it is looked at, and nothing more happens to it. */
  over = false;
  process: SimulatedProcess | undefined;
  readonly disk: SimulatedDisk;
  readonly #fault: (step: Step) => Fault | undefined;
  readonly #change: Change;
  readonly #survives: Survives;
  readonly history: History;
  #trap: ((step: Step) => Fault | undefined) | undefined;

  constructor(disk: SimulatedDisk, fault: (step: Step) => Fault | undefined, options: LifeOptions) {
    this.disk = disk;
    this.history = createHistory(options.replica);
    this.#fault = fault;
    this.#change = options.change ?? {};
    this.#survives = half(options.seed ?? 1);
  }

  start(): SimulatedProcess {
    const past: Operation[] = [];
    const { fault, dropsCache, wrap } = this.#change;
    const process = this.disk.start({
      ...(dropsCache === undefined ? {} : { dropsCache }),
      readFault: (path, offset) => this.readFault?.(path, offset),
      fault: (operation) => {
        const step = { ...operation, index: this.operations++, doing: this.history.doing, past };
        const found = (this.over ? undefined : (this.#fault(step) ?? this.#trap?.(step))) ?? fault?.(step);
        past.push(operation);
        return found;
      },
    });
    this.process = process;
    return wrap?.(process) ?? process;
  }

  async cutOff(before: (step: Step) => boolean, work: () => Promise<void>): Promise<void> {
    let sprung = false;
    this.#trap = (step) => {
      sprung ||= before(step);
      return sprung ? { kind: "kill" } : undefined;
    };
    try {
      await work();
    } catch (error) {
      if (!sprung) throw error;
    } finally {
      // An operation that fails ends the work before the trap does, and the process goes on.
      this.#trap = undefined;
    }
    expect(sprung, "what a life is cut off before comes").toBe(true);
  }

  crash(how: "killed" | "power"): void {
    this.process?.kill();
    if (how === "power") this.disk.losePower(this.#survives);
  }
}

/** How a life ends. */
export interface End {
  /** Operation before which it is killed. */
  readonly at: number;
  /** What survives of what was not synced; undefined: power stays, and is lost after another session has looked. */
  readonly survives: Survives | undefined;
  /** The session that looks only opens the disk: what it found must be there to stay. */
  readonly onlyOpens?: true;
}

export interface LifeOptions {
  /** For the losses of power within the life. Default 1. */
  readonly seed?: number;
  readonly change?: Change;
  readonly disk?: DiskOptions;
  /** What the disk's replica is; default a raw image. */
  readonly replica?: NewDisks;
  /** Whether power is lost once more after all was looked at, and all is looked at again. Default: with a change. */
  readonly twice?: boolean;
}

/** Lives until `end`, then everything that was promised is looked for. Throws what is missing. */
export async function crashAt(life: Life, end: End, options: LifeOptions = {}): Promise<"crashed" | "ended"> {
  const { at, survives, onlyOpens } = end;
  const disk = createSimulatedDisk(options.disk);
  const lived = new Lived(disk, ({ index }) => (index === at ? { kind: "kill" } : undefined), options);
  const { history } = lived;
  let crashed = false;
  try {
    await life(lived, history);
  } catch (error) {
    if (lived.process?.dead !== true || lived.operations !== at + 1) throw error;
    crashed = true;
  }
  lived.process?.kill();
  lived.over = true;
  history.readers.length = 0;
  if (onlyOpens === true) await openThenLosePower(lived, history);
  else if (survives === undefined) await lookThenLosePower(lived, history);
  else disk.losePower(survives);
  await checkAfterCrash(lived.start(), history);
  // What a session built on the remains of another must be there to stay.
  if (options.twice ?? options.change !== undefined) {
    disk.losePower(() => false);
    await checkAfterCrash(lived.start(), history);
  }
  return crashed ? "crashed" : "ended";
}

/** A session starts after a kill, tells its sender what is there, and does no more: it must be there to stay. */
async function lookThenLosePower(lived: Lived, history: History): Promise<void> {
  const process = lived.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process);
  if ((await store.summary(diskName)) === undefined) await createDisk(store, history);
  await withWriter(store, process, history, (writer) => {
    history.created = true;
    hearOf(history, writer.newest);
    return Promise.resolve();
  });
  lived.disk.losePower(() => false);
}

/** A session starts after a kill, judges what it finds, and ends: it has judged by what is on disk. */
async function openThenLosePower(lived: Lived, history: History): Promise<void> {
  const process = lived.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process);
  if ((await store.summary(diskName)) === undefined) return lived.disk.losePower(() => false);
  history.created = true;
  const writer = await during(history, "open", () => openWriter(store));
  hearOf(history, writer.newest);
  const log = await openLogOf(process);
  await writer.release();
  lived.disk.losePower(() => false);
  expect(await openLogOf(lived.start())).toEqual(log);
}

/**
 * One operation fails, the process goes on with a new session; at the end power is lost. True: the life ended with an error.
 */
export async function failAt(life: Life, at: number, errno: string, options: LifeOptions = {}): Promise<boolean> {
  const disk = createSimulatedDisk(options.disk);
  const change = options.change ?? {};
  const fault = ({ index }: Step): Fault | undefined => (index === at ? { kind: "errno", errno } : undefined);
  const lived = new Lived(disk, fault, options);
  const { history } = lived;
  let failed = false;
  try {
    await life(lived, history);
  } catch (error) {
    // The very first operations are the test's own.
    if (!(error instanceof ReplicationError) && at > 0) throw error;
    failed = true;
  }
  lived.over = true;
  const { process } = lived;
  if (process === undefined) throw new Error("nothing was lived");
  await checkAfterCrash(change.wrap?.(process) ?? process, history);
  disk.losePower(() => false);
  await checkAfterCrash(lived.start(), history);
  return failed;
}

/** One read fails once, the process goes on with a new session; at the end power is lost. `told`: the life ended with an error. Undefined: there are fewer reads. */
export async function failReadAt(
  life: Life,
  at: number,
  options: LifeOptions = {},
): Promise<"told" | "went on" | undefined> {
  const disk = createSimulatedDisk(options.disk);
  const lived = new Lived(disk, () => undefined, options);
  let failed: string | undefined;
  lived.readFault = (path) => {
    if (lived.over || lived.reads++ !== at) return undefined;
    failed = path;
    return "EIO";
  };
  const { history } = lived;
  let told = false;
  try {
    await life(lived, history);
  } catch (error) {
    // What the life expects of a store that can read may not come; what is promised counts.
    const isExpected = error instanceof ReplicationError || (error instanceof Error && error.name === "AssertionError");
    if (!isExpected) throw error;
    told = true;
  }
  lived.over = true;
  const { process } = lived;
  if (process === undefined) throw new Error("nothing was lived");
  try {
    await checkAfterCrash(process, history);
    disk.losePower(() => false);
    await checkAfterCrash(lived.start(), history);
  } catch (error) {
    throw new Error(`read ${at}, of ${failed ?? "nothing"}`, { cause: error });
  }
  if (failed === undefined) return undefined;
  return told ? "told" : "went on";
}

/** Lives to the end, and looks whether all is well when nothing happens. Returns the operations that `change` touched. */
export async function liveQuietly(life: Life, options: LifeOptions = {}): Promise<readonly number[]> {
  const touched: number[] = [];
  const { fault, ...change } = options.change ?? {};
  const note = (step: Step): Fault | undefined => {
    const found = fault?.(step);
    if (found !== undefined) touched.push(step.index);
    return found;
  };
  const lived = new Lived(createSimulatedDisk(options.disk), note, { ...options, change });
  const { history } = lived;
  await life(lived, history);
  await checkAfterCrash(lived.start(), history);
  return touched;
}

/** All operations of a life without a crash. */
export async function operationsOf(life: Life, options: LifeOptions = {}): Promise<readonly Step[]> {
  const steps: Step[] = [];
  const note = (step: Step): undefined => {
    steps.push(step);
  };
  const lived = new Lived(createSimulatedDisk(options.disk), note, options);
  await life(lived, lived.history);
  return steps;
}

function half(seed: number): Survives {
  const chance = createChance(seed);
  return () => chance() < 0.5;
}

/** One thing in eight goes its own way. */
function most(seed: number, survive: boolean): Survives {
  const chance = createChance(seed);
  return () => chance() < 0.125 !== survive;
}

/** Ways to end, with a seed. */
export const ends: Readonly<Record<string, (at: number, seed: number) => End>> = {
  killed: (at) => ({ at, survives: undefined }),
  "killed, opened": (at) => ({ at, survives: undefined, onlyOpens: true }),
  "power lost, everything survives": (at) => ({ at, survives: () => true }),
  "power lost, nothing un-synced survives": (at) => ({ at, survives: () => false }),
  "power lost, content survives and names do not": (at) => ({
    at,
    survives: (what) => what !== "entry" && what !== "time",
  }),
  "power lost, names survive and content does not": (at) => ({
    at,
    survives: (what) => what === "entry" || what === "time",
  }),
  "power lost, half survives": (at, seed) => ({ at, survives: half(seed) }),
  "power lost, most survives": (at, seed) => ({ at, survives: most(seed, true) }),
  "power lost, little survives": (at, seed) => ({ at, survives: most(seed, false) }),
};
