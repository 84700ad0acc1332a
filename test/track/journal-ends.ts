/** Ways for a life with a journal to end at one operation, and what is looked at then. */
import { expect } from "vitest";
import type { DiskOptions, Fault } from "../../src/testing/simulated-storage.ts";
import type { Survives } from "../../src/testing/simulated-node.ts";
import { powerLosses } from "../replica/power-losses.ts";
import { createChance } from "../replica/simulated-store.ts";
import { type FaultOf, isJournalPath, type Step, World } from "./journal-world.ts";
import type { Life } from "./journal-lives.ts";

export function half(seed: number): Survives {
  const chance = createChance(seed);
  return () => chance() < 0.5;
}

/** By name; `survives` undefined: the process ends, and power stays. */
export const ends: Readonly<Record<string, (seed: number) => Survives | undefined>> = {
  killed: () => undefined,
  ...powerLosses,
  "power lost, everything survives": () => () => true,
  "power lost, names survive and content does not": () => (what) => what === "entry" || what === "time",
};

export interface EndOptions {
  /** What is taken out of the program. */
  readonly change?: FaultOf;
  readonly disk?: DiskOptions;
  readonly seed?: number;
  /** A program that something was taken out of is to find its journal whole all the same. */
  readonly strict?: boolean | undefined;
}

/** A life in a world, and the look around after its end. */
export interface Played {
  live(): Promise<void>;
  /** As {@link World.crash}. */
  crash(survives?: Survives): void;
  /** `mayScan`: there is a reason to compare everything. */
  lookAround(mayScan: boolean): Promise<void>;
}

export type Play = (world: World) => Played;

/** Of a journal alone. */
export function playOf(life: Life): Play {
  return (world) => ({
    live: () => life(world),
    crash: (survives) => {
      world.crash(survives);
    },
    lookAround: (mayScan) => lookAround(world, mayScan),
  });
}

function worldOf(fault: FaultOf, { change, disk }: EndOptions): World {
  return new World({ ...(disk === undefined ? {} : { disk }), fault: (step) => fault(step) ?? change?.(step) });
}

/** All operations of a life on the journal and its directory. */
export async function stepsOf(play: Play, options: EndOptions = {}): Promise<readonly Step[]> {
  const steps: Step[] = [];
  const world = worldOf((step) => void steps.push(step), options);
  await world.makeImage();
  await play(world).live();
  return steps;
}

/** A look, a little use, and a look after power was lost once more. */
async function lookAround(world: World, mayScan: boolean): Promise<void> {
  const belief = await world.openAndCheck();
  if (!mayScan) expect(belief).toMatchObject({ kind: "exact" });
  await world.write(512, 3 * 4 * 1024 * 1024 + 512);
  world.crash(() => false);
  await world.openAndCheck();
  await world.cycle();
  await world.write(1024);
  await world.close();
  const after = await world.openAndCheck();
  if (world.isKept) expect(after).toMatchObject({ kind: "exact" });
}

/** True: the life ended there. Throws what is missing. */
export async function crashAt(play: Play, at: number, end: string, options: EndOptions = {}): Promise<boolean> {
  let over = false;
  const world = worldOf(({ index }) => (!over && index === at ? { kind: "kill" } : undefined), options);
  await world.makeImage();
  const played = play(world);
  let crashed = false;
  try {
    await played.live();
  } catch (error) {
    if (world.process?.dead !== true || world.operations <= at) throw error;
    crashed = true;
  }
  over = true;
  // A size that is being changed is another one for a moment, which is a reason to scan.
  const mayScan =
    !world.isKept || /grow|shrink/.test(world.doing) || (options.change !== undefined && options.strict !== true);
  played.crash(ends[end]?.((options.seed ?? 1) + at));
  await played.lookAround(mayScan);
  return crashed;
}

/** One operation on the journal fails, the guest goes on; at the end power is lost. True: the journal was lost by it, and said so. */
export async function failAt(play: Play, at: number, errno: string, options: EndOptions = {}): Promise<boolean> {
  let over = false;
  const fault = ({ index }: Step): Fault | undefined => (!over && index === at ? { kind: "errno", errno } : undefined);
  const world = worldOf(fault, options);
  await world.makeImage();
  const played = play(world);
  await played.live();
  over = true;
  const { scans } = world;
  played.crash(() => false);
  await played.lookAround(true);
  return scans > 1;
}

/** Whether a step is the journal's own. */
export function isJournals({ path }: Step): boolean {
  return isJournalPath(path);
}
