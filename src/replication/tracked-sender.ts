/**
 * Sends tracked images cycle by cycle: cut, send what changed, make it a recovery point, forget the dirty bits. Whatever goes wrong, they stay, and the next
 * cycle sends more. Several images are cut at one moment, and their points belong together.
 */
import type { Clock } from "../base/clock.ts";
import { invariant, ReplicationError } from "../base/errors.ts";
import type { Gate } from "../base/gate.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import type { KnownStates } from "../track/known-state.ts";
import type { ImageCut, TrackedImage } from "../track/tracked-image.ts";
import { tellMisses } from "./audit-report.ts";
import { type CutHow, type Cuts, makeCuts } from "./cut.ts";
import { makePasses, type Passed, type PassesOptions } from "./passes.ts";
import { type SendReport, withPasses } from "./report.ts";
import type { SendSource } from "./sender.ts";
import type { SourceChanges } from "./source-changes.ts";
import { WholeCycles } from "./whole-cycles.ts";
import { WholeDisks } from "./whole-disks.ts";

/** A cut whose base the receiver does not have is made again, with more of the disks: {@link WholeDisks}; after passes once more. */
const attemptsMax = 4;

export interface TrackedDisk {
  readonly image: TrackedImage;
  /** As of a {@link SendSource}. */
  readonly name: string;
  readonly identity: string;
  /** What the image looked like at the journal's base, and at its pending cycle. */
  readonly states: KnownStates;
}

/** What one cycle does, and what it is told. */
export interface CycleSend {
  /** In the order of the disks. */
  run(signal?: AbortSignal): Promise<readonly SendReport[]>;
}

export interface TrackedSenderOptions extends Pick<PassesOptions, "passBytes">, CutHow {
  /** At least one. */
  readonly disks: readonly TrackedDisk[];
  /** A send of these sources, as many as there are disks, all of one moment. */
  readonly createSend: (
    sources: readonly SendSource[],
    how: { readonly consistency: "crash" | "application" },
  ) => CycleSend;
  /** A send that makes no point, of one of the disks by its place among them. */
  readonly createPass: (source: SendSource, nth: number) => { run(signal?: AbortSignal): Promise<SendReport> };
  /** One cut of these images at a time: shared with whoever else cuts them. Default: nobody does. */
  readonly turn?: Gate | undefined;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
}

/** One cycle at a time. */
export class TrackedSender {
  readonly #o: TrackedSenderOptions;
  /** By their place. */
  readonly #whole = new WholeDisks<number>();
  readonly #wholeCycles: WholeCycles;

  constructor(options: TrackedSenderOptions) {
    invariant(options.disks.length > 0, "there is something to send");
    this.#o = options;
    this.#wholeCycles = new WholeCycles(options.log);
  }

  /**
   * Makes one recovery point of each image as it is now, all of one moment. Errors: of the send; `cut-abandoned`: the guest had to go on. In each case the changes are
   * part of the next cycle.
   */
  async cycle(signal?: AbortSignal): Promise<readonly SendReport[]> {
    await this.#o.turn?.enter(signal);
    try {
      return await this.#cycle(signal);
    } finally {
      this.#o.turn?.leave();
    }
  }

  async #cycle(signal: AbortSignal | undefined): Promise<readonly SendReport[]> {
    for (let attempt = 1; ; attempt++) {
      // Doubt about one disk costs the others nothing.
      const whole = this.#o.disks.map((disk, nth) => this.#whole.has(nth) || !isKnown(disk));
      const passes: (Passed | undefined)[] = [];
      let cuts: readonly ImageCut[] = [];
      try {
        for (const [nth, all] of whole.entries()) passes.push(await this.#passesOf(nth, all, signal));
        const made = await makeCuts(
          this.#o.disks.map(({ image }) => image),
          {
            ...this.#o,
            whole,
            passes: passes.map((passed) => passed?.cut),
            grains: this.#o.disks.map(({ states }, nth) => (passes[nth]?.pages ?? states).geometry?.blockBytes),
          },
        );
        ({ cuts } = made);
        const reports = await this.#send(made, passes, signal);
        this.#whole.clear();
        this.#wholeCycles.note(reports);
        return reports;
      } catch (error) {
        for (const cut of [...passes.map((passed) => passed?.cut), ...cuts]) await cut?.mergeBack();
        const isMismatch = error instanceof ReplicationError && error.code === "base-mismatch";
        if (!isMismatch || attempt === attemptsMax) throw error;
        // The receiver is not where it was left: what differs is found by comparing.
        this.#whole.missed(whole.keys());
      }
    }
  }

  /** Of one disk. */
  async #passesOf(nth: number, whole: boolean, signal: AbortSignal | undefined): Promise<Passed | undefined> {
    const { disks, clock, createPass, passBytes } = this.#o;
    const disk = disks[nth];
    invariant(disk !== undefined, "a pass is of one of the disks");
    return await makePasses({
      ...{ image: disk.image, clock, whole, passBytes },
      send: async (cut, how) => {
        const source = sourceOf(disk, cut, { states: disk.states.known, needsAll: this.#needsAll(nth), ...how });
        return await createPass(source, nth).run(signal);
      },
    });
  }

  #needsAll(nth: number): () => void {
    return () => {
      this.#whole.add(nth);
    };
  }

  async #send(
    { cuts, consistency }: Cuts,
    passes: readonly (Passed | undefined)[],
    signal: AbortSignal | undefined,
  ): Promise<readonly SendReport[]> {
    const { disks, createSend } = this.#o;
    for (const { durable } of cuts) await durable;
    const pairs = disks.flatMap((disk, nth) => {
      const cut = cuts[nth];
      return cut === undefined ? [] : [{ disk, cut, passed: passes[nth]?.pages, needsAll: this.#needsAll(nth) }];
    });
    const send = createSend(
      pairs.map(({ disk, cut, passed, needsAll }) => {
        const { states } = disk;
        return sourceOf(disk, cut, { states: states.known, passed, needsAll, keep: (state) => states.keep(state) });
      }),
      { consistency },
    );
    const reports = await send.run(signal);
    tellMisses(reports, this.#o.log);
    for (const [nth, { disk, cut }] of pairs.entries()) {
      const { states } = disk;
      const missedBytes = reports[nth]?.audit?.missedBytes ?? 0;
      // After a miss nothing is known: the next cycle, of another process too, compares everything.
      const remember = (): Promise<void> => (missedBytes > 0 ? states.forget() : states.settle(cut.cycle));
      // Where nothing had changed and no point was made the receiver stays where it is, and so does the journal.
      if (reports[nth]?.created === true) await cut.retire(remember);
      else await cut.mergeBack();
    }
    return reports.map((report, nth) => withPasses(report, passes[nth]?.reports ?? []));
  }
}

function isKnown({ image, states }: TrackedDisk): boolean {
  const { base, pending } = image.journal;
  return states.known.some(({ cycle }) => cycle === base || cycle === pending);
}

function sourceOf(
  { name, identity, states }: TrackedDisk,
  { cycle, bases, dirty, audited, complete, grainBytes, view }: ImageCut,
  how: Pick<SourceChanges, "states" | "passed" | "keep" | "needsAll">,
): SendSource {
  const check = async (): Promise<void> => view.check();
  return {
    ...{ name, identity, reader: view, guard: { begin: check, check } },
    changes: {
      cycle,
      bases,
      dirty,
      isExact: true,
      audited,
      complete,
      grainBytes,
      missed: () => states.forget(),
      ...how,
    },
  };
}
