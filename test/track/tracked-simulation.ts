/**
 * A random life of a tracked image, its journal, its known states and a receiver over simulated storage: writes, zeros, flushes, cycles while the guest goes on, links
 * that break before and behind the commit, stops, failing operations, kills, losses of power. One seed, one life. What is looked at: tracked-world.ts.
 */
import { InvariantError } from "../../src/base/errors.ts";
import type { DiskOptions, Fault } from "../../src/testing/simulated-storage.ts";
import { createChance } from "../replica/simulated-store.ts";
import { blockBytes, type FaultOf, imagePath, regionBytes, World } from "./journal-world.ts";
import { TrackedWorld } from "./tracked-world.ts";

export interface TrackedOptions {
  /** What is taken out of the program. */
  readonly change?: FaultOf | undefined;
  readonly disk?: DiskOptions | undefined;
  /** Operations fail, beside processes that end and power that is lost. Default true. */
  readonly failures?: boolean;
}

export interface TrackedFacts {
  crashes: number;
  losses: number;
  failures: number;
  exact: number;
  scans: number;
  /** Cycles that made a point; of them deltas; cuts that came to nothing. */
  points: number;
  deltas: number;
  givenUp: number;
  stops: number;
}

/** Lives one life of so many steps. Throws what was found wrong. */
export async function simulateTracked(
  seed: number,
  steps: number,
  options: TrackedOptions = {},
): Promise<TrackedFacts> {
  const life = new Life(seed, options);
  try {
    return await life.live(steps);
  } catch (error) {
    throw new Error(`seed ${seed}, step ${life.step} (${life.world.doing}): ${String(error)}`, { cause: error });
  }
}

class Life {
  readonly world: World;
  readonly #tracked: TrackedWorld;
  readonly #chance: () => number;
  readonly #failures: boolean;
  readonly #facts = { crashes: 0, losses: 0, failures: 0, givenUp: 0, stops: 0 };
  step = 0;
  /** Operations until something goes wrong. */
  #fuse = Number.POSITIVE_INFINITY;
  #wrong: Fault = { kind: "kill" };

  constructor(seed: number, { change, disk, failures = true }: TrackedOptions) {
    this.#chance = createChance(seed);
    this.#failures = failures;
    this.world = new World({
      ...(disk === undefined ? {} : { disk }),
      fault: (step) => this.#fault(step) ?? change?.(step),
    });
    this.#tracked = new TrackedWorld(this.world);
  }

  readonly #fault: FaultOf = ({ kind, path }) => {
    if (this.world.quiet || --this.#fuse > 0) return undefined;
    // Of the image a sync may fail: a guest whose writes fail knows it, and what became of them is its own business.
    if (this.#wrong.kind === "errno" && path === imagePath && kind !== "sync") return undefined;
    this.#fuse = Number.POSITIVE_INFINITY;
    return this.#wrong;
  };

  async live(steps: number): Promise<TrackedFacts> {
    const { world } = this;
    await world.makeImage();
    world.doing = "open";
    await this.#tracked.open();
    for (this.step = 0; this.step < steps; this.step++) {
      if (this.#chance() < 0.2) this.#light();
      try {
        await this.#doSomething();
        if (world.process?.dead === true) throw new Error("the process was killed");
      } catch (error) {
        if (world.process?.dead !== true || error instanceof InvariantError) throw error;
        await this.#crash();
      }
    }
    await this.#crash();
    const { points, deltas } = this.#tracked.facts;
    return { ...this.#facts, points, deltas, exact: world.exact, scans: world.scans };
  }

  /** Something will go wrong before long. */
  #light(): void {
    this.#fuse = 1 + this.#below(20);
    const fails = this.#chance() < 0.3 && this.#failures;
    this.#wrong = fails ? { kind: "errno", errno: this.#chance() < 0.5 ? "EIO" : "ENOSPC" } : { kind: "kill" };
    if (fails) this.#facts.failures++;
  }

  async #crash(): Promise<void> {
    const { world } = this;
    this.#facts.crashes++;
    world.quiet = true;
    const power = this.#chance() < 0.6;
    const share = [0, 0.5, 1, this.#chance()][this.#below(4)] ?? 0;
    if (power) this.#facts.losses++;
    this.#tracked.crash(power ? () => this.#chance() < share : undefined);
    world.doing = "open after a crash";
    await this.#tracked.openAndCheck();
    world.quiet = false;
    this.#fuse = Number.POSITIVE_INFINITY;
  }

  async #doSomething(): Promise<void> {
    const { world } = this;
    const dice = this.#chance();
    if (dice < 0.45) {
      world.doing = "guest";
      const guests = Array.from({ length: 1 + this.#below(4) }, this.#guest);
      // All have ended before anything is looked at.
      const ended = await Promise.allSettled(guests.map((guest) => guest()));
      for (const each of ended) if (each.status === "rejected") throw each.reason;
    } else if (dice < 0.55) {
      world.doing = "flush";
      await this.#tracked.flush();
    } else if (dice < 0.82) await this.#cycle();
    else if (dice < 0.87) {
      world.doing = "heartbeat";
      await world.pass(1 + this.#below(11));
    } else if (dice < 0.94) {
      world.doing = "close";
      this.#facts.stops++;
      await this.#tracked.close();
      world.doing = "open";
      await this.#tracked.openAndCheck();
    } else {
      world.doing = "crash";
      world.process?.kill();
    }
  }

  async #cycle(): Promise<void> {
    this.world.doing = "cycle";
    const link = this.#chance();
    const made = await this.#tracked.cycle({
      link: link < 0.65 ? "good" : link < 0.8 ? "broken" : "lost",
      byLane: this.#chance() < 0.5,
      meanwhile: Array.from({ length: this.#below(8) }, this.#guest),
    });
    if (!made) this.#facts.givenUp++;
  }

  /** Something a guest does; what, is decided now. */
  readonly #guest = (): (() => Promise<unknown>) => {
    const [offset, dice] = [this.#offset(), this.#chance()];
    const sectors = 1 + this.#below(this.#chance() < 0.2 ? 9 : 2);
    const tracked = this.#tracked;
    if (dice < 0.5) return () => tracked.write(offset, sectors);
    if (dice < 0.75) return () => tracked.write(offset, sectors, true);
    if (dice < 0.97) return () => tracked.zero(offset, sectors * 4_096 * (dice < 0.85 ? 1 : 16));
    return () => tracked.zero(offset, 3 * regionBytes);
  };

  #below(end: number): number {
    return Math.floor(this.#chance() * end);
  }

  /** Few blocks of few regions, so that they are written to again; more regions than are hot at a time. */
  #offset(): number {
    return this.#below(10) * regionBytes + this.#below(3) * 21 * blockBytes + this.#below(6) * 512;
  }
}
