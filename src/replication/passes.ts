/**
 * Passes over an image in use: it is sent as it is while it changes, and what changed meanwhile is sent by the next pass, until little is left for a cut. A cut of all of it
 * would keep old content of whatever is written while a whole disk travels.
 *
 * The receiver makes no point of a pass. Nothing of it enters the journal either: whatever ends the passes, every block is as dirty as it was.
 */
import type { Clock } from "../base/clock.ts";
import { invariant } from "../base/errors.ts";
import type { PageDigests } from "../table/digest-table.ts";
import { cutImages, type ImageCut, type TrackedImage } from "../track/tracked-image.ts";
import type { SendReport } from "./report.ts";
import type { SourceChanges } from "./source-changes.ts";

/** With less to send than this an image is cut at once. */
export const PASS_BYTES = 1024 ** 3;
/** A guest that writes as fast as the passes go is not to be caught up with. */
const passesMax = 8;

/** The last pass, which goes on until the cut that follows it. */
export interface Passed {
  readonly cut: ImageCut;
  /** Of what the receiver has of it. */
  readonly pages: PageDigests;
  /** Of all passes. */
  readonly reports: readonly SendReport[];
}

export interface PassesOptions {
  readonly image: TrackedImage;
  readonly clock: Clock;
  /** All of the image is to be looked at; else what is dirty. */
  readonly whole: boolean;
  /** Default {@link PASS_BYTES}. */
  readonly passBytes?: number | undefined;
  /** Sends the image as it is. `passed`: what {@link ImageCut.dirty} is relative to; `keep` is to be called as that of a source. */
  readonly send: (cut: ImageCut, how: Pick<SourceChanges, "passed" | "keep">) => Promise<SendReport>;
}

/** Undefined: little is to be sent. Errors: `cut-abandoned`, of the send; then no pass is open. */
export async function makePasses(options: PassesOptions): Promise<Passed | undefined> {
  const { image, clock, whole, passBytes = PASS_BYTES, send } = options;
  const dirtyBytes = (): number => image.journal.dirty.count * image.journal.dirty.blockBytes;
  let passed: Passed | undefined;
  let open: ImageCut | undefined;
  let left = whole ? image.sizeBytes : dirtyBytes();
  try {
    for (let pass = 0; pass < passesMax && left > passBytes; pass++) {
      const [cut] = await cutImages([image], { clock, freeze: "nothing", passes: [open] });
      invariant(cut !== undefined, "one image, one cut");
      open = cut;
      await cut.durable;
      let pages: PageDigests | undefined;
      const report = await send(cut, {
        passed: passed?.pages,
        keep: (state) => {
          ({ pages } = state);
          return Promise.resolve();
        },
      });
      invariant(pages !== undefined, "what was sent is known");
      passed = { cut, pages, reports: [...(passed?.reports ?? []), report] };
      if (dirtyBytes() > left / 2) break;
      left = dirtyBytes();
    }
  } catch (error) {
    await open?.mergeBack();
    throw error;
  }
  return passed;
}
