/** What a session has to do, from what both ends said. Pure. */
import { ReplicationError } from "../base/errors.ts";
import type { Geometry } from "../base/units.ts";
import type { Open, Opened } from "../wire/messages.ts";
import type { SendReason } from "./report.ts";

export type Plan =
  /** The commit of this very cycle is durable already: its answer was lost. Nothing is to be done. */
  | { readonly kind: "already-durable"; readonly point: number; readonly root: Uint8Array }
  /** Compare every block with the receiver's table. */
  | {
      readonly kind: "compare";
      readonly reason: SendReason;
      readonly geometry: Geometry;
      /** Another image wrote the newest point, and nobody said `--adopt`: a sample is compared before anything is sent. */
      readonly sampleFirst: boolean;
    };

function reasonOf({ fresh, empty, interrupted }: Opened): SendReason {
  if (fresh) return empty ? "initial" : "resume";
  return interrupted === true ? "resume" : "scan";
}

/** Total: every pair of inputs has exactly one outcome, a plan or a named error. */
export function planSession(open: Open, opened: Opened): Plan {
  if (open.explicit && open.blockBytes !== undefined && open.blockBytes !== opened.blockBytes) {
    throw new ReplicationError(
      "block-size-differs",
      `disk ${open.disk} has blocks of ${opened.blockBytes} bytes, not ${open.blockBytes}; leave --block out, or send under another name`,
    );
  }
  if (open.explicit && open.digestKind !== undefined && open.digestKind !== opened.digestKind) {
    throw new ReplicationError(
      "digest-kind-differs",
      `disk ${open.disk} is kept with ${opened.digestKind} digests, not ${open.digestKind}; leave --digest out, or send under another name`,
    );
  }
  if (opened.cycle === open.cycle && opened.point !== undefined && opened.root !== undefined) {
    return { kind: "already-durable", point: opened.point, root: opened.root };
  }
  if (open.sizeBytes < opened.sizeBytes && !opened.fresh && !open.allowShrink) {
    throw new ReplicationError(
      "size-shrunk",
      `disk ${open.disk} has ${opened.sizeBytes} bytes at the receiver and the image only ${open.sizeBytes}; say --allow-shrink to make the disk smaller, send it under another name, or make the image as large as it was`,
    );
  }
  return {
    kind: "compare",
    reason: reasonOf(opened),
    geometry: { sizeBytes: open.sizeBytes, blockBytes: opened.blockBytes, digestKind: opened.digestKind },
    sampleFirst: opened.anotherSource && !open.adopt && !opened.fresh && !opened.empty,
  };
}
