/** A cut of the disks of a machine, with all that belongs to it: quiet applications, and blocks called clean that are looked at. */
import type { Clock } from "../base/clock.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import { chooseAudit } from "../track/audit.ts";
import { cutImages, type ImageCut, type TrackedImage } from "../track/tracked-image.ts";
import { type Quiescing, whileQuiet } from "./quiescing.ts";

/** How cuts of some images are made, whoever asks for one. */
export interface CutHow {
  /** Has the applications of the machine write out what they hold, for as long as the cut takes. */
  readonly quiescing?: Quiescing | undefined;
  /** Share of the blocks called clean that is looked at in each cut, 0 to 1; default 0. Of an image that is in doubt it is {@link TrackedImage.leastAuditShare} at least. */
  readonly auditShare?: number | undefined;
}

export interface Cuts {
  /** In the order of the images. */
  readonly cuts: readonly ImageCut[];
  readonly consistency: "crash" | "application";
}

/** All of one moment. Rejects as {@link cutImages}. */
export async function makeCuts(
  images: readonly TrackedImage[],
  options: CutHow & {
    /** For each image: every block can be read, and nothing is audited. */
    readonly whole: readonly boolean[];
    /** For each image. */
    readonly passes?: readonly (ImageCut | undefined)[];
    /** For each image: block of the receiver's disk, as far as it is known. */
    readonly grains: readonly (number | undefined)[];
    readonly clock: Clock;
    readonly random: Random;
    readonly log: Logger;
  },
): Promise<Cuts> {
  const { quiescing, auditShare = 0, whole, passes, grains, clock, random, log } = options;
  const audits = images.map(({ journal, leastAuditShare }, nth) =>
    whole[nth] === true ? undefined : chooseAudit(journal.dirty, Math.max(auditShare, leastAuditShare), random),
  );
  return await whileQuiet({ quiescing, clock, log }, () =>
    cutImages(images, { clock, audits, passes, grains, freeze: whole.map((all) => (all ? "all" : "dirty")) }),
  );
}
