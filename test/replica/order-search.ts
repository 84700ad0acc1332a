/** Looks for the crash, or the failure, that shows what an edge is good for. */
import { type Life, lives } from "./crash-lives.ts";
import { crashAt, ends, failAt, type LifeOptions, liveQuietly, operationsOf, type Step } from "./crash-scenario.ts";
import type { Edge } from "./order-edges.ts";

/** Of a life that has crashes in it: nothing more happens. */
const asItIs = "as it is";

/** Where an edge bites. */
export interface Place {
  readonly life: string;
  /** Number of the operation. */
  readonly at: number;
  readonly end: string;
  readonly seed: number;
}

/** A place by what is done there, which stays when operations come and go elsewhere in a life. */
export interface NamedPlace extends Omit<Place, "at"> {
  /** What the life is doing and the operation before which it ends. Undefined: it has no end of its own. */
  readonly before?: string | undefined;
  /** Of the operations of that name the n-th, from 1. */
  readonly nth?: number | undefined;
}

const namesOf = new Map<string, Promise<readonly string[]>>();

function operationNames(name: string): Promise<readonly string[]> {
  const found = namesOf.get(name) ?? operationsOf(lifeOf(name)).then((steps) => steps.map(nameOf));
  namesOf.set(name, found);
  return found;
}

function nameOf({ doing, kind, path }: Step): string {
  return `${doing}: ${kind} ${path.replace(/^.*\/vm1\.sda\b/, "")}`;
}

function lifeOf(name: string): Life {
  const life = lives[name];
  if (life === undefined) throw new Error(`there is no life ${name}`);
  return life;
}

export async function nameOfPlace({ at, ...place }: Place): Promise<NamedPlace> {
  if (place.end === asItIs) return place;
  const names = await operationNames(place.life);
  const before = names[at] ?? "the end";
  return { ...place, before, nth: names.slice(0, at + 1).filter((name) => name === before).length };
}

/** Undefined: there is no such place any more. */
export async function findPlace({ before, nth = 1, ...place }: NamedPlace): Promise<Place | undefined> {
  if (place.end === asItIs) return { ...place, at: 0 };
  const names = await operationNames(place.life);
  const all = names.flatMap((name, at) => (name === before ? [at] : []));
  const at = before === "the end" ? names.length : all[nth - 1];
  return at === undefined ? undefined : { ...place, at };
}

/** Operations behind a change at which a crash is tried. */
const reach = 32;
/** Ends in which chance decides what survives. */
const byChance = / (half|most|little) /;

function optionsOf(edge: Edge, seed: number): LifeOptions {
  return { seed, change: edge.change, disk: { entriesSurvive: edge.entries ?? "prefix" } };
}

/** What is found wrong there; undefined: nothing. */
export async function tryPlace(edge: Edge, { life: name, at, end, seed }: Place): Promise<string | undefined> {
  const life = lifeOf(name);
  const how = ends[end];
  const options = optionsOf(edge, seed);
  try {
    if (end === asItIs) await liveQuietly(life, options);
    else if (how === undefined) await failAt(life, at, end, options);
    else await crashAt(life, how(at, seed), options);
    return undefined;
  } catch (error) {
    return String(error);
  }
}

interface Places {
  readonly life: string;
  readonly near: readonly number[];
  readonly far: readonly number[];
}

/** Places to try: lives that have crashes in them, then those right behind what the edge changes. */
export async function* placesOf(edge: Edge, seeds: readonly number[]): AsyncGenerator<Place> {
  const [seed = 1, ...more] = seeds;
  const ways = edge.failure === true ? ["EIO"] : Object.keys(ends);
  const all: Places[] = [];
  const quiet: Place[] = [];
  for (const life of edge.lives ?? Object.keys(lives)) {
    let touched: readonly number[];
    try {
      touched = await liveQuietly(lifeOf(life), optionsOf(edge, seed));
    } catch (error) {
      // The crashes within a life may show it; one without them shows that the program was changed otherwise.
      if (life === "disk" || life === "points") throw error;
      quiet.push({ life, at: 0, end: asItIs, seed });
      continue;
    }
    const { length } = await operationNames(life);
    const first = edge.failure === true || edge.found === true ? [] : near(touched, length);
    const far = Array.from({ length }, (_, at) => at).filter((at) => !first.includes(at));
    all.push({ life, near: first, far });
  }
  yield* quiet;
  for (const { life, near: ats } of all) {
    for (const at of ats) {
      for (const end of ways) yield { life, at, end, seed: seedOf(at, seed) };
      for (const end of ways) {
        if (byChance.test(end)) for (const other of more) yield { life, at, end, seed: seedOf(at, other) };
      }
    }
  }
  // What is done only by a process that finds what another one left, and what shows long afterwards.
  for (const { life, far } of all)
    for (const at of far) for (const end of ways) yield { life, at, end, seed: seedOf(at, seed) };
}

/** Another chance at each place. */
function seedOf(at: number, seed: number): number {
  return seed + at * 1_000;
}

function near(touched: readonly number[], length: number): readonly number[] {
  const ats = new Set<number>();
  for (let distance = 1; distance <= reach; distance++) {
    for (const index of touched) if (index + distance <= length) ats.add(index + distance);
  }
  return [...ats];
}
