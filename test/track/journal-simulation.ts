/**
 * A random life of a tracked image over simulated storage: writes one by one and at once, cuts that are retired, merged back or acknowledged late, checkpoints,
 * new sizes, closes, failing operations, kills, losses of power. One seed, one life. After each crash, and at each cut, what differs from a cycle that the
 * journal names must be dirty.
 */
import { InvariantError } from "../../src/base/errors.ts";
import type { Fault } from "../../src/testing/simulated-storage.ts";
import { createChance } from "../replica/simulated-store.ts";
import { blockBytes, isJournalPath, regionBytes, World } from "./journal-world.ts";

export interface SimulatedFacts {
  crashes: number;
  failures: number;
  exact: number;
  scans: number;
  cycles: number;
  merged: number;
  late: number;
  resized: number;
}

/** Lives one life of so many steps. Throws what was found wrong. */
export async function simulateJournal(seed: number, steps: number): Promise<SimulatedFacts> {
  const life = new Life(seed);
  try {
    await life.live(steps);
  } catch (error) {
    throw new Error(`seed ${seed}, step ${life.step} (${life.world.doing}): ${String(error)}`, { cause: error });
  }
  return life.facts;
}

class Life {
  readonly world: World;
  readonly #chance: () => number;
  step = 0;
  readonly facts = { crashes: 0, failures: 0, exact: 0, scans: 0, cycles: 0, merged: 0, late: 0, resized: 0 };
  /** Operations until something goes wrong. */
  #fuse = Number.POSITIVE_INFINITY;
  #wrong: Fault = { kind: "kill" };
  /** Cut, and neither retired nor merged back. */
  #cut: string | undefined;

  constructor(seed: number) {
    this.#chance = createChance(seed);
    this.world = new World({
      fault: ({ path }) => {
        if (this.world.quiet || --this.#fuse > 0) return undefined;
        if (this.#wrong.kind === "errno" && !isJournalPath(path)) return undefined;
        this.#fuse = Number.POSITIVE_INFINITY;
        return this.#wrong;
      },
    });
  }

  async live(steps: number): Promise<void> {
    const { world } = this;
    await world.makeImage();
    world.doing = "open";
    await world.open();
    for (this.step = 0; this.step < steps; this.step++) {
      if (this.#chance() < 0.15) this.#light();
      try {
        await this.#doSomething();
        if (world.process?.dead === true) throw new Error("the process was killed");
      } catch (error) {
        if (world.process?.dead !== true || error instanceof InvariantError) throw error;
        await this.#crash();
      }
    }
    await this.#crash();
    this.facts.exact = world.exact;
    this.facts.scans = world.scans;
  }

  /** Something will go wrong before long. */
  #light(): void {
    this.#fuse = 1 + Math.floor(this.#chance() * 12);
    this.#wrong =
      this.#chance() < 0.7 ? { kind: "kill" } : { kind: "errno", errno: this.#chance() < 0.5 ? "EIO" : "ENOSPC" };
    if (this.#wrong.kind === "errno") this.facts.failures++;
  }

  async #crash(): Promise<void> {
    const { world } = this;
    this.facts.crashes++;
    this.#cut = undefined;
    world.quiet = true;
    const power = this.#chance();
    const share = this.#chance();
    world.crash(power < 0.4 ? undefined : () => this.#chance() < share);
    world.doing = "open after a crash";
    await world.openAndCheck();
    world.quiet = false;
    this.#fuse = Number.POSITIVE_INFINITY;
    // What a receiver may have had all along.
    const pending = world.journal?.pending;
    if (pending === undefined || this.#chance() < 0.5) return;
    world.doing = "acknowledge after a crash";
    this.facts.late++;
    await world.retire(pending);
  }

  async #doSomething(): Promise<void> {
    const { world } = this;
    const dice = this.#chance();
    if (dice < 0.45) {
      world.doing = "write";
      await world.write(...Array.from({ length: 1 + this.#below(4) }, () => this.#offset()));
    } else if (dice < 0.5) {
      world.doing = "range";
      await world.writeRange(this.#offset(), this.#below(5) * regionBytes + 512, 50);
    } else if (dice < 0.68) await this.#cycle();
    else if (dice < 0.74) {
      world.doing = "checkpoint";
      await world.journal?.checkpoint();
    } else if (dice < 0.82) {
      world.doing = "heartbeat";
      await world.pass(1 + this.#below(11));
    } else if (dice < 0.88) await this.#resize();
    else if (dice < 0.94) {
      world.doing = "close";
      await world.close();
      this.#cut = undefined;
      world.doing = "open";
      await world.openAndCheck();
    } else {
      world.doing = "crash";
      world.process?.kill();
    }
  }

  async #cycle(): Promise<void> {
    const { world } = this;
    const cut = this.#cut;
    const { journal } = world;
    this.#cut = undefined;
    if (cut === undefined || journal?.pending !== cut) {
      world.doing = "cut";
      // Of a journal that failed in between nothing is left to settle, but what was frozen.
      if (cut !== undefined) journal?.mergeBack(cut);
      this.#cut = await world.flip();
    } else if (this.#chance() < 0.7) {
      world.doing = "retire";
      await world.retire(cut);
      this.facts.cycles++;
    } else {
      world.doing = "merge back";
      world.mergeBack(cut);
      this.facts.merged++;
      if (this.#chance() < 0.3) await world.retire(cut);
    }
  }

  async #resize(): Promise<void> {
    const { world } = this;
    world.doing = "resize";
    await world.resize((2 + this.#below(12)) * regionBytes + this.#below(64) * blockBytes + this.#below(2) * 512);
    this.facts.resized++;
  }

  #below(end: number): number {
    return Math.floor(this.#chance() * end);
  }

  #offset(): number {
    return this.#below(Math.floor(this.world.sizeBytes / 512)) * 512;
  }
}
