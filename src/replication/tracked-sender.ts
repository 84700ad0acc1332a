/**
 * Sends a tracked image cycle by cycle: cut, send what changed, make it a recovery point, forget the dirty bits. Whatever goes wrong, they stay, and the next
 * cycle sends more.
 */
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { KnownStates } from "../track/known-state.ts";
import { cutImages, type ImageCut, type TrackedImage } from "../track/tracked-image.ts";
import type { SendReport } from "./report.ts";
import type { Sender, SendSource } from "./sender.ts";

export interface TrackedSenderOptions {
  readonly image: TrackedImage;
  /** As of a {@link SendSource}. */
  readonly name: string;
  readonly identity: string;
  /** What the image looked like at the journal's base, and at its pending cycle. */
  readonly states: KnownStates;
  /** A sender of this source; its options are the caller's. */
  readonly createSender: (source: SendSource) => Sender;
  readonly clock: Clock;
}

/** One cycle at a time. */
export class TrackedSender {
  readonly #o: TrackedSenderOptions;
  /** The next cut is of the whole disk. */
  #whole = false;
  #sender: Sender | undefined;

  constructor(options: TrackedSenderOptions) {
    this.#o = options;
  }

  /** The one at work, for progress. */
  get sender(): Sender | undefined {
    return this.#sender;
  }

  /** Blocks that changed since the last cut, of which a receiver is not known to have them. */
  get dirtyBytes(): number {
    const { dirty } = this.#o.image.journal;
    return dirty.count * dirty.blockBytes;
  }

  /**
   * Makes one recovery point of the image as it is now. Errors: of {@link Sender.run}; `cut-abandoned`: the guest had to go on. In each case the changes are part of the
   * next cycle.
   */
  async cycle(signal?: AbortSignal): Promise<SendReport> {
    for (;;) {
      const whole = this.#whole || !this.#isKnown();
      const [cut] = await cutImages([this.#o.image], { clock: this.#o.clock, freeze: whole ? "all" : "dirty" });
      if (cut === undefined) throw new ReplicationError("internal", "an image that is cut has a cut");
      try {
        const report = await this.#send(cut, signal);
        this.#whole = false;
        return report;
      } catch (error) {
        await cut.mergeBack();
        if (whole || !(error instanceof ReplicationError) || error.code !== "base-mismatch") throw error;
        // The receiver is not where it was left: what differs is found by comparing.
        this.#whole = true;
      } finally {
        this.#sender = undefined;
      }
    }
  }

  #isKnown(): boolean {
    const { image, states } = this.#o;
    const { base, pending } = image.journal;
    return states.known.some(({ cycle }) => cycle === base || cycle === pending);
  }

  async #send(cut: ImageCut, signal: AbortSignal | undefined): Promise<SendReport> {
    const { name, identity, createSender, states } = this.#o;
    const { cycle, bases, dirty, complete, view } = cut;
    await cut.durable;
    const sender = createSender({
      reader: view,
      name,
      identity,
      guard: {
        begin: async () => view.check(),
        check: async () => view.check(),
      },
      changes: { cycle, bases, dirty, complete, states: states.known, keep: (state) => states.keep(state) },
    });
    this.#sender = sender;
    const report = await sender.run(signal);
    if (!report.created) {
      // Nothing had changed, and the receiver keeps the point it has: so does the journal.
      await cut.mergeBack();
      return report;
    }
    await cut.retire(() => states.settle(cycle));
    return report;
  }
}
